"""Greedy output is token for token what transformers gives in float32."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.models import assert_greedy, prompt, tiny_checkpoint
from tests.e2e.server import DEMO_MODEL, Server, serving

COUNT = 12
LENGTHS = (1, 64, 65, 128, 600, 1024 - COUNT)
"""One token, a bucket's edge, one more, a block's edge, two segments, up to max_model_len."""


def complete(server: Server, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Outputs of prompts that run all at once."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda tokens: server.greedy(tokens, count), prompts))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_lone_prompt_gives_the_reference_tokens_cold_and_from_the_prefix_cache(
    demo_server: Server, length: int
) -> None:
    tokens = prompt(length, start=1)
    hits = demo_server.metric("vllm:prefix_cache_hits_total")
    cold = demo_server.greedy(tokens, COUNT, cache_salt=f"length {length}")
    assert demo_server.metric("vllm:prefix_cache_hits_total") == hits
    warm = demo_server.greedy(tokens, COUNT, cache_salt=f"length {length}")
    cached = demo_server.metric("vllm:prefix_cache_hits_total") - hits
    assert cached == (length - 1) // 32 * 32
    assert_greedy(DEMO_MODEL, tokens, cold)
    assert warm == cold


def test_eight_prompts_at_once_give_the_reference_tokens(demo_server: Server) -> None:
    lengths = (1, 7, 64, 65, 200, 513, 600, 33)
    prompts = [prompt(length, start=100 * index) for index, length in enumerate(lengths)]
    for tokens, output in zip(prompts, complete(demo_server, prompts, COUNT), strict=True):
        assert_greedy(DEMO_MODEL, tokens, output)


def test_prompts_that_share_a_beginning_give_the_reference_tokens(demo_server: Server) -> None:
    shared = prompt(300, start=900)
    demo_server.greedy(shared, 1)
    hits = demo_server.metric("vllm:prefix_cache_hits_total")
    prompts = [shared + prompt(length, start=1500) for length in (1, 20, 90, 250)]
    outputs = complete(demo_server, prompts, COUNT)
    assert demo_server.metric("vllm:prefix_cache_hits_total") >= hits + 4 * (300 // 32 * 32)
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(DEMO_MODEL, tokens, output)


@pytest.mark.parametrize(
    ("name", "nodes", "flags"),
    [
        ("llama3", 1, ()),
        ("mistral", 2, ("--no-async-scheduling",)),
        ("qwen2-windows", 3, ("--no-prefix-caching",)),
        ("qwen3", 4, ("--cpu.collective=sockets",)),
    ],
)
def test_every_architecture_gives_the_reference_tokens_when_requests_are_preempted(
    tmp_path: Path, name: str, nodes: int, flags: tuple[str, ...]
) -> None:
    folder = tiny_checkpoint(tmp_path / name, name)
    memory = ("--max-model-len=384", "--block-size=16", "--num-blocks=40")
    common = (f"--nodes={nodes}", "--dtype=float32", "--cluster.kind=local", "--cpu.threads=1")
    prompts = [prompt(length, start=40 * length) for length in (1, 7, 16, 17, 31, 33, 40, 50)]
    long_prompt = prompt(300)
    with serving(folder, *common, *memory, "--buckets.prefill=32,64,128", *flags) as server:
        alone = server.greedy(long_prompt, 20)
        outputs = complete(server, prompts, 100)
        assert server.metric("vllm:num_preemptions_total") > 0
    assert_greedy(folder, long_prompt, alone)
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(folder, tokens, output)


def test_four_followers_give_the_reference_tokens_when_requests_are_preempted() -> None:
    memory = ("--max-model-len=160", "--block-size=16", "--num-blocks=20")
    prompts = [prompt(length, start=40 * length) for length in (1, 7, 16, 17, 31, 33, 40, 50)]
    flags = ("--nodes=4", "--dtype=float32", "--cluster.kind=local", *memory)
    with serving(DEMO_MODEL, *flags) as server:
        outputs = complete(server, prompts, 40)
        assert server.metric("vllm:num_preemptions_total") > 0
    for tokens, output in zip(prompts, outputs, strict=True):
        assert_greedy(DEMO_MODEL, tokens, output)
