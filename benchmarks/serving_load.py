"""The load that `serving.py` puts on a server, and what its streams took."""

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from serving_servers import MODEL, PORT, Running, cpu_seconds

OUTPUT_TOKENS = 64
REPEATED_TOKENS, NEW_TOKENS = 1500, 28


@dataclass(frozen=True)
class Workload:
    """So many requests with prompts of one length, some at once."""

    prompt_tokens: int
    concurrency: int
    num_requests: int

    @property
    def name(self) -> str:
        return f"{self.prompt_tokens} in, {self.concurrency} at once"


WORKLOADS = (
    Workload(128, 1, 5), Workload(128, 8, 16),
    Workload(1024, 1, 3), Workload(1024, 8, 16),
    Workload(1800, 1, 3), Workload(1800, 8, 16),
)  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """Seconds of one request."""

    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float:
        return (self.e2e_s - self.ttft_s) / (OUTPUT_TOKENS - 1)


async def one_stream(client: httpx.AsyncClient, prompt: list[int]) -> Stream:
    """Send a prompt; raises `SystemExit` unless exactly `OUTPUT_TOKENS` arrive."""
    body = {
        "model": Path(MODEL).name,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    began, first, last = time.perf_counter(), 0.0, 0.0
    tokens, usage, finish, done = 0, None, None, False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"HTTP {answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            now = time.perf_counter()
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                if choice.get("token_ids"):
                    first, last = first or now, now
                    tokens += len(choice["token_ids"])
                finish = choice["finish_reason"] or finish
    counted = usage and (usage["prompt_tokens"], usage["completion_tokens"])
    if (tokens, finish, done) != (OUTPUT_TOKENS, "length", True) or counted != (
        len(prompt),
        OUTPUT_TOKENS,
    ):
        raise SystemExit(f"stream of {tokens} tokens, finish {finish}, end {done}, usage {usage}")
    return Stream(first - began, last - began)


def random_tokens(source: random.Random, count: int) -> list[int]:
    return [source.randrange(1000, 40000) for _ in range(count)]


async def load(prompts: list[list[int]], concurrency: int) -> tuple[list[Stream], float]:
    """All streams and the seconds from the first request to the last token."""
    slots = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    base = f"http://127.0.0.1:{PORT}"
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:

        async def limited(prompt: list[int]) -> Stream:
            async with slots:
                return await one_stream(client, prompt)

        began = time.perf_counter()
        streams = await asyncio.gather(*map(limited, prompts))
        return streams, time.perf_counter() - began


def measure(server: Running, workload: Workload, seed: int) -> dict[str, object]:
    """The streams' times, and how busy the machine was with other work."""
    source = random.Random(seed)
    prompts = [random_tokens(source, workload.prompt_tokens) for _ in range(workload.num_requests)]
    processes = [*server.processes(), psutil.Process()]
    before = cpu_seconds(processes)
    streams, took_s = asyncio.run(load(prompts, workload.concurrency))
    after = cpu_seconds(processes)
    own, whole = (end - begin for begin, end in zip(before, after, strict=True))
    return {
        "ttft_s": [stream.ttft_s for stream in streams],
        "tpot_s": [stream.tpot_s for stream in streams],
        "e2e_s": [stream.e2e_s for stream in streams],
        "took_s": took_s,
        "cores_used": round(own / took_s, 2),
        "cores_used_by_others": round(max(0.0, whole - own) / took_s, 2),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def measure_repetition(seed: int, *, repetitions: int = 3) -> dict[str, list[float]]:
    """Seconds to the first token of prompts that are new, and of others that begin as they did."""
    source = random.Random(seed)
    found: dict[str, list[float]] = {"cold_ttft_s": [], "repeated_ttft_s": []}
    for _ in range(repetitions):
        beginning = random_tokens(source, REPEATED_TOKENS)
        for times in found.values():
            prompt = beginning + random_tokens(source, NEW_TOKENS)
            times.append(asyncio.run(load([prompt], 1))[0][0].ttft_s)
    return found


def warm_up(seed: int) -> None:
    """Streams that are not measured: a server's first ones compile and allocate."""
    source = random.Random(seed)
    prompts = [random_tokens(source, length) for length in (128, 128, 128, 128, 1800)]
    asyncio.run(load(prompts, len(prompts)))
