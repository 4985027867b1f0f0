"""vLLM's server over followers that run NxD Inference, in an environment of their own.

Runs in the leader's environment; NXDI_PYTHON names the followers' interpreter.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="runs in the leader's environment")

import psutil
from nxdi_served import PYTHON, greedy, marks, serving
from tests.e2e.losses import pids
from tests.e2e.models import assert_greedy, prompt
from tests.e2e.server import DEMO_MODEL

from rufus_serve.cli.main import main

NUM_BLOCKS = 33
"""Of 32 tokens, the null block included."""
pytestmark = marks


@pytest.fixture(
    scope="module",
    params=[
        ("contiguous", 1, 0, "none"),
        ("contiguous", 3, 64, "ngram"),
        ("block", 1, 64, "none"),
        ("block", 3, 0, "none"),
        ("contiguous", 1, 0, "fused"),
    ],
    ids=lambda param: "{}-tp{}-candidates{}-drafts-{}".format(*param),
)
def server(request, tmp_path_factory):
    """The demo model; in the block layout with too few blocks for three long requests at once."""
    layout, ranks, candidates, drafts = request.param
    with serving(
        DEMO_MODEL, tmp_path_factory.mktemp("work"),
        neuron={"kv_layout": layout, "device_candidates": candidates},
        nodes=ranks, max_model_len=512, max_num_seqs=4,
        buckets={"prefill": [64, 128, 512], "context": [128, 512]},
        speculation={
            "method": drafts, "num_speculative_tokens": 3,
            "draft_model": str(DEMO_MODEL) if drafts == "fused" else "",
        },
        num_blocks=0 if layout == "contiguous" else NUM_BLOCKS,
    ) as server:  # fmt: skip
        server.layout, server.ranks, server.drafts = layout, ranks, drafts
        yield server


def test_followers_run_in_the_environment_that_is_named(server):
    assert len(server.followers()) == server.ranks
    for follower in server.followers():
        assert follower.cmdline()[0] == PYTHON


def test_concurrent_prompts_of_all_lengths_give_the_reference_tokens(server):
    lengths = (1, 2, 63, 64, 65, 127, 128, 300, 500)
    prompts = [prompt(length, start=100 * index) for index, length in enumerate(lengths)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        outputs = list(pool.map(lambda tokens: greedy(server, tokens, 8), prompts))
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(DEMO_MODEL, tokens, output)


def test_drafts_come_true_where_a_text_repeats_itself(server):
    if server.drafts == "none":
        pytest.skip("no drafts")
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    tokens = prompt(20, start=700) * 8
    before = server.metric(accepted)
    assert_greedy(DEMO_MODEL, tokens, greedy(server, tokens, 40))
    assert server.metric(accepted) > before


def test_a_text_ends_where_it_would_within_what_a_graph_chose(server):
    if server.drafts != "fused":
        pytest.skip("the leader chooses tokens")
    tokens = prompt(30, start=900)
    whole = greedy(server, tokens, 9)
    for count in (1, 2, 4, 7):
        assert greedy(server, tokens, count) == whole[:count]
    for stop in list(dict.fromkeys(whole))[2:5]:
        body = {
            "model": server.name, "prompt": tokens, "max_tokens": 9, "ignore_eos": True,
            "stop_token_ids": [stop], "return_token_ids": True,
        }  # fmt: skip
        _, answer = server.post("/v1/completions", body, timeout_s=300)
        (choice,) = answer["choices"]
        assert choice["token_ids"] == whole[: whole.index(stop) + 1]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/completions", {"temperature": 0.7}, "temperature"),
        ("/v1/completions", {"logprobs": 2}, "logprobs"),
        ("/v1/completions", {"min_tokens": 3}, "min_tokens"),
        ("/v1/completions", {"logit_bias": {"5": 1}}, "logit_bias"),
        ("/v1/completions", {"bad_words": ["no"]}, "bad_words"),
        ("/v1/chat/completions", {"presence_penalty": 1}, "presence_penalty"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "structured_out"),
    ],
)
def test_what_needs_logits_is_refused_by_name(server, path, fields, name):
    if server.drafts != "fused":
        pytest.skip("the leader chooses tokens")
    asked = {"prompt": "x"} if path == "/v1/completions" else {
        "messages": [{"role": "user", "content": "x"}]
    }  # fmt: skip
    status, answer = server.post(path, {"model": server.name, "max_tokens": 3, **asked, **fields})
    assert status == 400
    assert name in answer["error"]["message"]
    assert "speculation.method fused or eagle" in answer["error"]["message"]


def test_cached_beginnings_give_the_reference_tokens(server):
    shared = prompt(200, start=1300)
    hits = server.metric("vllm:prefix_cache_hits_total")
    for length in (1, 30, 100, 290):
        tokens = shared + prompt(length, start=1600)
        assert_greedy(DEMO_MODEL, tokens, greedy(server, tokens, 4))
    hits = server.metric("vllm:prefix_cache_hits_total") - hits
    # Each finds the blocks of 32 that it shares with the longest one before.
    assert hits == (0 if server.layout == "contiguous" else 192 + 224 + 288)


def test_preempted_requests_give_the_reference_tokens(server):
    """Three of 10 blocks that soon want 11 each, of 32. A KV line is never too short."""
    before = server.metric("vllm:num_preemptions_total")
    prompts = [prompt(318, start=37 + 450 * index) for index in range(3)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        outputs = list(pool.map(lambda tokens: greedy(server, tokens, 12), prompts))
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(DEMO_MODEL, tokens, output)
    preempted = server.metric("vllm:num_preemptions_total") - before
    assert preempted == 0 if server.layout == "contiguous" else preempted > 0


def test_a_killed_rank_is_replaced_and_no_token_lost(server):
    tokens = prompt(40, start=2000)
    before = pids(server)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(greedy, server, tokens, 30)
        while server.metric("vllm:num_requests_running") < 1:
            pass
        psutil.Process(before[server.ranks - 1]).kill()
        output = answer.result()
    assert_greedy(DEMO_MODEL, tokens, output)
    assert not set(before.values()) & set(pids(server).values())


def test_a_bring_up_compares_one_rank_and_three_with_transformers(tmp_path):
    path = tmp_path / "report.json"
    flags = ("--runtime=neuron", "--neuron.mode=nxdi-cpu", "--neuron.cores-per-node=1",
             "--dtype=float32", f"--cluster.python={PYTHON}")  # fmt: skip
    main(["doctor", str(DEMO_MODEL), f"--bring-up={path}", *flags])
    alone, several, _ = json.loads(path.read_text())["stages"]
    assert several["name"] == "3 processes on this host"
    for stage in (alone, several):
        assert stage["error"] == ""
        assert stage["answers"]["divergences"] == []
