"""vLLM's server over four ranks that cut prompts, batches, or both.

Runs in the leader's environment; NXDI_PYTHON names the followers' interpreter.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="runs in the leader's environment")

import psutil
from nxdi_served import greedy, marks, serving
from tests.e2e.losses import pids
from tests.e2e.models import assert_greedy, prompt, tiny_checkpoint

pytestmark = marks
RANKS = 4
CP, DP = {"cp_degree": 2}, {"attention_dp_degree": 2}
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 128,
         "intermediate_size": 96}  # fmt: skip
"""Four ranks, and groups of two, divide the heads."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("even"), "llama", **SIZES)


@pytest.fixture(scope="module", params=[CP, DP, CP | DP], ids=["cp2", "dp2", "cp2-dp2"])
def server(request, folder, tmp_path_factory):
    sizes = {"prefill": [32, 128], "context": [64, 128]}
    with serving(
        folder, tmp_path_factory.mktemp("work"), neuron=request.param, nodes=RANKS,
        max_model_len=128, max_num_seqs=4, buckets=sizes,
    ) as server:  # fmt: skip
        yield server


def test_prompts_of_mixed_lengths_in_full_and_partial_batches_are_answered_rightly(server, folder):
    """Six requests of four places that end one after the other: batches fill and thin out."""
    requests = [(1, 30), (2, 5), (31, 20), (32, 9), (33, 14), (100, 25)]
    prompts = [prompt(length, start=100 * index) for index, (length, _) in enumerate(requests)]
    with ThreadPoolExecutor(len(requests)) as pool:
        outputs = pool.map(
            lambda tokens, count: greedy(server, tokens, count),
            prompts, [count for _, count in requests],
        )  # fmt: skip
        for tokens, output in zip(prompts, outputs, strict=True):
            assert_greedy(folder, tokens, output)


def test_a_killed_rank_of_the_second_group_is_replaced_and_no_token_lost(server, folder):
    prompts = [prompt(length, start=800 + length) for length in (9, 40)]
    before = pids(server)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(greedy, server, tokens, 60) for tokens in prompts]
        while server.metric("vllm:num_requests_running") < len(prompts):
            pass
        psutil.Process(before[RANKS - 1]).kill()
        outputs = [answer.result() for answer in answers]
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(folder, tokens, output)
    assert not set(before.values()) & set(pids(server).values())
