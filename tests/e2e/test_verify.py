"""`rufus-serve verify` against a running server, with a reference that transformers made."""

from pathlib import Path

import msgspec
import pytest
import torch

from rufus_serve.cli.main import main
from rufus_serve.verify.making import make_reference
from rufus_serve.verify.reference import Reference, write_reference
from tests.e2e.server import DEMO_MODEL, Server

STRICT = ("--margin=0.001", "--mean-error=0.001")
"""What float32 leaves."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.set_num_threads(1)
    return make_reference(DEMO_MODEL, num_tokens=4, progress=lambda *_: None)


def verify(server: Server, reference: Reference, folder: Path) -> int:
    path = folder / "reference.json"
    write_reference(path, reference)
    return main(["verify", f"--against={path}", f"--url={server.url}", *STRICT])


def test_followers_in_float32_give_the_references_tokens_and_log_probabilities(
    demo_server: Server, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(demo_server, reference, tmp_path) == 0
    assert "100.00% the same" in capsys.readouterr().out


def test_a_token_of_another_model_is_found(
    demo_server: Server, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = reference.prompts
    third = first.choices[3]
    other = min(third.top, key=third.top.__getitem__)
    wrong = msgspec.structs.replace(
        third, token=other, top=third.top | {other: 0.0}, logprob=0.0
    )  # fmt: skip
    choices = (*first.choices[:3], wrong, *first.choices[4:])
    changed = msgspec.structs.replace(
        reference, prompts=(msgspec.structs.replace(first, choices=choices), *others)
    )
    assert verify(demo_server, changed, tmp_path) == 17
    assert f"prompt 0, token 3: {third.token} instead of {other}" in capsys.readouterr().out
