"""A request that a runtime cannot take is refused, or failed alone; the others go on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rufus_serve.channel.faults import VARIABLE
from tests.e2e.losses import status_of
from tests.e2e.models import VOCAB, prompt
from tests.e2e.server import Server
from tests.e2e.streams import Streams, chat, completion

FLAGS = ("--nodes=2", "--cluster.kind=local", "--dtype=float32", "--max-model-len=512")
ADDED = "<|beyond the model|>"
POISON = 31337


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its tokenizer knows a token more than the model; its runtimes fail on token `POISON`."""
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("poison") / "llama"))
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    like = dict(tokenizer["added_tokens"][0])
    tokenizer["added_tokens"].append(like | {"id": VOCAB, "content": ADDED, "special": False})
    path.write_text(json.dumps(tokenizer))
    faults = {"faults": [{"kind": "fail", "token_ids": [POISON], "max_count": 0}]}
    server = Server(model, *FLAGS, environ={VARIABLE: json.dumps(faults)})
    try:
        server.wait_ready(deadline_s=240.0)
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"prompt": f"Once upon {ADDED} a time"}, "prompt"),
        ({"prompt": [1, VOCAB]}, "prompt"),
        ({"prompt": "Once", "bad_words": [ADDED]}, "bad_words"),
        ({"prompt": "Once", "logit_bias": {str(VOCAB): 5}}, "logit_bias"),
        ({"prompt": "Once", "allowed_token_ids": [1, VOCAB]}, "allowed_token_ids"),
    ],
)
def test_a_token_that_the_model_has_no_row_for_is_refused(
    server: Server, body: dict[str, Any], parameter: str
) -> None:
    restarts = status_of(server).restarts
    status, answer = server.post("/v1/completions", body | {"max_tokens": 2})
    assert status == 400, answer
    assert parameter in json.dumps(answer)
    assert status_of(server).restarts == restarts


def test_a_request_that_a_runtime_refuses_twice_is_failed_alone(server: Server) -> None:
    asks = [
        completion(prompt(40, start=start), max_tokens=60, ignore_eos=True)
        for start in (0, 90, 400)
    ] + [chat("Tell me about the sea.", max_tokens=60, ignore_eos=True)]
    undisturbed = Streams(server.port, server.name, asks).finish()
    before = status_of(server)
    streams = Streams(server.port, server.name, asks)
    streams.wait_until_each_began()
    poison = completion([*prompt(20), POISON], max_tokens=5)
    (failed,) = Streams(server.port, server.name, [poison]).finish()
    assert "the model's runtime failed" in failed.error
    assert VARIABLE in failed.error
    for answer, other in zip(streams.finish(), undisturbed, strict=True):
        answer.assert_same(other)
    after = status_of(server)
    assert after.epoch == before.epoch + 2
    assert [f.pid for f in after.followers] == [f.pid for f in before.followers]
