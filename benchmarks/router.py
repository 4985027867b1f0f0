"""How requests are spread over two groups, one of which is slow: routers, and groups of one server.

    python benchmarks/router.py [--router .tools/bin/vllm-router] [--requests 80] [--write]

Two servers of one follower each, where every step of one takes `DELAY_S` longer; before them in
turn vllm-router with each policy, and a proxy that goes by open requests, as an ALB does. Then
one server with two such groups, which spreads by itself. Each gets requests of the same lengths
at the same moments, in open loop. Who answered is told by the time between tokens, which is near
`DELAY_S` in the slow group alone, and is checked against what the groups counted.
"""

import argparse
import asyncio
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import msgspec
import numpy as np

from marks import keep
from rufus_serve.bench.arrivals import OpenLoop
from rufus_serve.bench.stream import Record
from rufus_serve.bench.workload import Ask
from rufus_serve.channel.faults import Fault, FaultPlan
from serving_report import table
from serving_servers import OURS, PORT, ROOT, Running, machine, ours, versions
from whole_answers import whole_answers

RECORD = ROOT / "benchmarks" / "results" / "router.json"
MARKS = ("<!-- router: begin -->", "<!-- router: end -->")
SERVER_PORTS, FRONT_PORT, FRONT_METRICS_PORT = (PORT, PORT + 1), PORT + 2, PORT + 3
POLICIES = ("round_robin", "power_of_two", "cache_aware")
LEAST_OPEN, GROUPS = "least open requests, as an ALB", f"{OURS}, two groups"
DELAY_S, RATE = 0.15, 4.0
SLOW_TPOT_S = 0.75 * DELAY_S
OUTPUT_TOKENS, BEGINNINGS, SHARED_WORDS, OWN_WORDS = 32, 4, 120, 20
WORDS = ("river", "stone", "window", "garden", "letter", "winter", "market", "bridge")
FRONT_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One request's seconds, and who answered."""

    slow: bool
    ttft_s: float
    e2e_s: float


@contextmanager
def server(port: int, *, groups: int = 1, slow: bool = False) -> Iterator[str]:
    """A server of so many groups, the first of which is slow, if so asked; its address."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ro-")))
        python = slow_python(folder) if slow else sys.executable
        more = [f"--port={port}", f"--groups={groups}", "--cluster.kind=local", "--cpu.threads=1",
                "--max-num-seqs=8", f"--cluster.python={python}"]  # fmt: skip
        running = Running(replace(ours(*more), port=port), folder)
        stack.callback(running.stop)
        yield f"http://127.0.0.1:{port}"


def slow_python(folder: Path) -> Path:
    """An interpreter for followers, the first of which is slow in every step."""
    fault = Fault(kind="delay", at="request", probability=1.0, delay_s=DELAY_S, max_count=0)
    plan = msgspec.json.encode(FaultPlan(faults=(fault,))).decode()
    path = folder / "python"
    path.write_text(
        f"#!/bin/sh\nmkdir {folder}/first 2>/dev/null && export RUFUS_FAULTS={shlex.quote(plan)}\n"
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


@contextmanager
def front(command: list[str], ready: str) -> Iterator[str]:
    """What spreads requests; its address."""
    url = f"http://127.0.0.1:{FRONT_PORT}"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + FRONT_DEADLINE_S
        while not answers(f"{url}{ready}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} is not ready (exit code {process.poll()})")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def fronts(router: Path, urls: list[str]) -> dict[str, tuple[list[str], str]]:
    """By name: a command, and the path that tells it is ready."""
    proxy = [sys.executable, str(ROOT / "benchmarks/least_open.py"), str(FRONT_PORT), *urls]
    return {
        f"vllm-router, {policy}": (
            [str(router), "--host=127.0.0.1", f"--port={FRONT_PORT}", f"--policy={policy}",
             f"--prometheus-port={FRONT_METRICS_PORT}", "--disable-retries",
             "--worker-urls", *urls],
            "/readiness",
        )
        for policy in POLICIES
    } | {LEAST_OPEN: (proxy, "/ready")}  # fmt: skip


def prompts(count: int, seed: int) -> list[Ask]:
    """Texts of one length, each with one of a few beginnings; other texts for another seed."""
    source = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(source.choices(WORDS, k=number))

    beginnings = [words(SHARED_WORDS) for _ in range(BEGINNINGS)]
    return [
        Ask(
            prompt=f"{source.choice(beginnings)} {words(OWN_WORDS)}",
            max_tokens=OUTPUT_TOKENS,
            exact=True,
        )
        for _ in range(count)
    ]


def ask(url: str, asked: list[Ask]) -> list[Record]:
    """Send all at a given rate; fails unless every stream is whole."""
    return asyncio.run(whole_answers(url, OpenLoop(RATE), asked))


def counted(urls: list[str]) -> list[int]:
    """Requests that each engine of the servers has finished."""
    finished = r'^vllm:request_success_total{[^}]*engine="(\d+)"[^}]*} (\S+)$'
    found: dict[tuple[str, str], float] = {}
    for url in urls:
        text = httpx.get(f"{url}/metrics", timeout=30).text
        for engine, value in re.findall(finished, text, re.MULTILINE):
            found[url, engine] = found.get((url, engine), 0) + float(value)
    return [int(value) for value in found.values()]


def measure(name: str, url: str, servers: list[str], asked: list[Ask]) -> list[Answer]:
    """Both groups' answers."""
    ask(url, asked[:4])
    time.sleep(1)
    before = counted(servers)
    found = [
        Answer(slow=record.tpot_s > SLOW_TPOT_S, ttft_s=record.ttft_s, e2e_s=record.e2e_s)
        for record in ask(url, asked[4:])
    ]
    time.sleep(1)
    after = counted(servers)
    slow = sum(each.slow for each in found)
    told = sorted(late - early for early, late in zip(before, after, strict=True))
    if told != sorted((slow, len(found) - slow)):
        raise SystemExit(f"{name}: {slow} of {len(found)} answers were slow, groups count {told}")
    print(time.strftime("%X"), name, f"{len(found) - slow} fast, {slow} slow", flush=True)
    return found


def measure_all(router: Path, count: int) -> dict[str, list[Answer]]:
    seeds = iter(range(100))
    found = {}
    with ExitStack() as stack:
        urls = [
            stack.enter_context(server(port, slow=slow))
            for port, slow in zip(SERVER_PORTS, (False, True), strict=True)
        ]
        for name, (command, ready) in fronts(router, urls).items():
            with front(command, ready) as url:
                found[name] = measure(name, url, urls, prompts(count + 4, next(seeds)))
    with server(PORT, groups=2, slow=True) as url:
        found[GROUPS] = measure(GROUPS, url, [url], prompts(count + 4, next(seeds)))
    return found


def row(name: str, found: list[Answer]) -> list[object]:
    """Of one way: requests and p99 by group, and what all clients saw."""
    cells: list[object] = [name]
    for slow in (False, True):
        e2e = [each.e2e_s for each in found if each.slow == slow]
        cells.append(f"{len(e2e)}: {np.percentile(e2e, 99):.1f}" if e2e else "0")
    for p in (50, 99):
        ttft = np.percentile([each.ttft_s for each in found], p)
        e2e_s = np.percentile([each.e2e_s for each in found], p)
        cells.append(f"{ttft:.2f} / {e2e_s:.1f}")
    return cells


def report(record: dict) -> str:
    header = ["spread by", "fast group, requests: E2E p99 s", "slow group, requests: E2E p99 s",
              "all: TTFT / E2E p50 s", "all: TTFT / E2E p99 s"]  # fmt: skip
    rows = [row(name, [Answer(**each) for each in found]) for name, found in record["ways"].items()]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--router", type=Path, default=ROOT / ".tools/bin/vllm-router")
    parser.add_argument("--requests", type=int, default=80, help="to each way [80]")
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    if not options.router.exists():
        raise SystemExit(f"no {options.router}: run deploy/helm/get-tools.sh, or pass --router")
    ways = measure_all(options.router, options.requests)
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/router.py --write",
        "machine": machine(),
        "versions": versions(),
        "load": {"requests_per_s": RATE, "output_tokens": OUTPUT_TOKENS, "delay_s": DELAY_S},
        "ways": {name: [vars(each) for each in found] for name, found in ways.items()},
        "load_1min_at_the_end": round(os.getloadavg()[0], 1),
    }
    print(report(record))
    if options.write:
        keep(record, RECORD, f"{record['date']}\n\n{report(record)}", MARKS)


if __name__ == "__main__":
    main()
