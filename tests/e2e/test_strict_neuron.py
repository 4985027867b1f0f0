"""A server whose CPU followers keep a Neuron device's rules, in both KV layouts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.e2e.losses import pids
from tests.e2e.models import assert_greedy, prompt, tiny_checkpoint
from tests.e2e.server import Server, serving

FLAGS = (
    "--nodes=2", "--cluster.kind=local", "--dtype=float32", "--cpu.strict-neuron",
    "--max-model-len=512", "--max-num-seqs=4", "--buckets.prefill=64,128,512",
    "--buckets.context=128,512",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module", params=["contiguous", "block"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Server]:
    """In the block layout with too few blocks for four long requests at once."""
    blocks = "--num-blocks=29" if request.param == "block" else "--num-blocks=0"
    with serving(folder, *FLAGS, f"--neuron.kv-layout={request.param}", blocks) as server:
        server.layout = request.param  # type: ignore[attr-defined]
        yield server


def test_prompts_of_all_lengths_at_once_give_the_reference_tokens(server, folder):
    lengths = (1, 2, 63, 64, 65, 127, 128, 129, 300, 500)
    prompts = [prompt(length, start=100 * index) for index, length in enumerate(lengths)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        outputs = list(pool.map(lambda tokens: server.greedy(tokens, 8), prompts))
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(folder, tokens, output)


def test_cached_beginnings_and_preemption_give_the_reference_tokens(server, folder):
    shared = prompt(200, start=1300)
    prompts = [shared + prompt(100, start=start) for start in (0, 450, 900, 1500)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        outputs = list(pool.map(lambda tokens: server.greedy(tokens, 90), prompts))
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(folder, tokens, output)
    preempted, hits = (
        server.metric(f"vllm:{name}_total") for name in ("num_preemptions", "prefix_cache_hits")
    )
    assert (preempted > 0, hits > 0) == (server.layout == "block", server.layout == "block")


def test_a_prompts_logprobs_are_refused_by_name(server):
    for fields in ({"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}):
        body = {"model": server.name, "prompt": prompt(9), "max_tokens": 1} | fields
        status, answer = server.post("/v1/completions", body)
        assert status == 400
        assert "prompt_logprobs" in answer["error"]["message"]
        assert answer["error"]["param"] == "prompt_logprobs"


def test_a_killed_follower_loses_no_token(server, folder):
    tokens, before = prompt(40, start=2000), pids(server)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.greedy, tokens, 100)
        while server.metric("vllm:num_requests_running") < 1:
            pass
        psutil.Process(before[1]).kill()
        output = answer.result()
    assert_greedy(folder, tokens, output)
