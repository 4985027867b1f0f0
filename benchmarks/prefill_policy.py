"""First token against decode stall: what `neuron.max_prefills_per_decode` trades.

    python -m benchmarks.prefill_policy [--bursts 6] [--write]

For each value a server of its own, with a Neuron device's rules on one CPU follower. Requests
decode for long; meanwhile prompts arrive in bursts. Reported are the prompts' times to the first
token, and the longest pause that a burst made in the decoding streams. `--write` puts the table
into benchmarks/README.md.
"""

import argparse
import asyncio
import itertools
import json
import platform
import statistics
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import psutil
from benchmarks.marks import README, between_marks
from tests.e2e.server import DEMO_MODEL, serving

POLICIES = (1, 2, 4)
DECODERS, BURST, GAP_S = 3, 4, 2.5
PROMPT_TOKENS = (60, 400)
FLAGS = (
    "--cpu.strict-neuron", "--nodes=1", "--cluster.kind=local", "--max-model-len=1024",
    "--max-num-seqs=8", "--buckets.prefill=64,512,1024", "--buckets.context=512,1024",
)  # fmt: skip
VOCAB = 49152
MARKS = ("<!-- prefill-policy: begin -->", "<!-- prefill-policy: end -->")


async def token_times(
    client: httpx.AsyncClient, prompt: list[int], count: int
) -> AsyncIterator[float]:
    """When each token of a greedy answer arrives."""
    body = {
        "model": DEMO_MODEL.name, "prompt": prompt, "max_tokens": count, "temperature": 0,
        "ignore_eos": True, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for _ in json.loads(line[6:])["choices"][0]["token_ids"]:
                yield time.perf_counter()


async def collect(client: httpx.AsyncClient, prompt: list[int], count: int) -> list[float]:
    times = [at async for at in token_times(client, prompt, count)]
    assert len(times) == count, (len(times), count)
    return times


async def mixed_load(url: str, length: int, bursts: int) -> dict[str, list[float]]:
    """First-token times of all prompts, and each burst's longest pause in a decoding stream."""
    random = np.random.default_rng(5)

    def prompt(length: int) -> list[int]:
        return random.integers(100, VOCAB, length).tolist()

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await collect(client, prompt(length), 4)
        first_s, pauses_s, steady_s = [], [], []
        for _ in range(bursts):
            decoding = [
                asyncio.create_task(collect(client, prompt(16), 160)) for _ in range(DECODERS)
            ]
            await asyncio.sleep(GAP_S)
            start = time.perf_counter()
            arriving = [
                asyncio.create_task(collect(client, prompt(length), 2)) for _ in range(BURST)
            ]
            answers = await asyncio.gather(*arriving)
            first_s += [times[0] - start for times in answers]
            end = max(times[0] for times in answers)
            gaps = [
                (later, later - earlier)
                for times in await asyncio.gather(*decoding)
                for earlier, later in itertools.pairwise(times)
            ]
            during = [gap for at, gap in gaps if start < at <= end + 1e-3]
            assert during, "the streams ended before the burst: decode for longer"
            pauses_s.append(max(during))
            steady_s += [gap for at, gap in gaps if at <= start]
    return {"first_s": first_s, "pauses_s": pauses_s, "steady_s": steady_s}


def measure(policy: int, bursts: int) -> dict[int, dict[str, list[float]]]:
    """By length of the arriving prompts."""
    flag = f"--neuron.max-prefills-per-decode={policy}"
    with serving(DEMO_MODEL, *FLAGS, flag) as server:
        return {
            length: asyncio.run(mixed_load(server.url, length, bursts)) for length in PROMPT_TOKENS
        }


def report(results: dict[int, dict[int, dict[str, list[float]]]], bursts: int) -> str:
    def ms(seconds: float) -> str:
        return f"{seconds * 1000:.0f}"

    header = [
        "tokens of a prompt", "prefills per decode", "first token, median", "first token, worst",
        "longest pause of a burst, median", "longest pause, worst", "pause without prompts, median",
    ]  # fmt: skip
    rows = [
        [
            str(length), str(policy), ms(statistics.median(found["first_s"])),
            ms(max(found["first_s"])), ms(statistics.median(found["pauses_s"])),
            ms(max(found["pauses_s"])), ms(statistics.median(found["steady_s"])),
        ]
        for length in PROMPT_TOKENS
        for policy, found in ((policy, by_length[length]) for policy, by_length in results.items())
    ]  # fmt: skip
    lines = [
        f"{bursts} bursts of {BURST} prompts for each row, while {DECODERS} requests decode; "
        f"{time.strftime('%Y-%m-%d')}, {psutil.cpu_count()} cores ({platform.machine()}), one CPU "
        "follower with `cpu.strict_neuron`; milliseconds.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bursts", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results = {policy: measure(policy, options.bursts) for policy in POLICIES}
    text = report(results, options.bursts)
    print(text)
    if options.write:
        between_marks(README, f"\n{text}\n", MARKS)


if __name__ == "__main__":
    main()
