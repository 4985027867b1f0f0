"""What routing brings: two groups behind one endpoint beside two servers that are asked by turns.

    python benchmarks/routing.py [--requests 300] [--write]

Two loads in open loop, the same arrivals for each contender. *Beginnings*: each prompt has one of
some beginnings, which all fit the cache of one group twice as large, but not that of one of two
groups; counted are the prompt tokens that were found cached, against those of the one large group.
*Mixed*: prompts and answers of all lengths, and none shared; what counts is the 99th percentile of
the time to the first token. By turns means that requests go to one server and the other, whatever
they have to do: round robin.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import httpx

from marks import keep
from rufus_serve.bench.arrivals import OpenLoop, Trace
from rufus_serve.bench.stream import Record
from rufus_serve.bench.summary import summarize
from rufus_serve.bench.workload import Ask
from serving_report import table
from serving_servers import (
    PORT,
    ROOT,
    Contender,
    machine,
    ours,
    running,
    versions,
)
from whole_answers import whole_answers

RECORD = ROOT / "benchmarks" / "results" / "routing.json"
MARKS = ("<!-- routing: begin -->", "<!-- routing: end -->")
ROWS, NUM_BLOCKS, BLOCK_SIZE, MAX_MODEL_LEN = 8, 193, 32, 1024
"""Of one of the two groups; one of the blocks is the null block."""
NUM_BEGINNINGS, BEGINNING, OWN, ANSWER = 16, 256, 32, 8
LARGE, BOTH, TURNS = "one group, twice the cache", "two groups", "two servers by turns"


@dataclass(frozen=True)
class Case:
    """Servers that share a load."""

    name: str
    groups: int = 1
    servers: int = 1
    num_blocks: int = NUM_BLOCKS
    loads: tuple[str, ...] = ("beginnings", "mixed")

    def contenders(self) -> list[Contender]:
        more = [
            f"--groups={self.groups}", f"--num-blocks={self.num_blocks}", "--cluster.kind=local",
            f"--max-num-seqs={ROWS}", f"--block-size={BLOCK_SIZE}", "--cpu.threads=1",
            f"--max-model-len={MAX_MODEL_LEN}",
        ]  # fmt: skip
        ports = [PORT + number for number in range(self.servers)]
        return [replace(ours(*more, f"--port={port}"), port=port) for port in ports]


CASES = (
    Case(LARGE, num_blocks=2 * NUM_BLOCKS - 1, loads=("beginnings",)),
    Case(BOTH, groups=2),
    Case(TURNS, servers=2),
)


def tokens(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.randrange(1000, 40000) for _ in range(count))


def with_beginnings(source: random.Random, count: int) -> list[Ask]:
    beginnings = [tokens(source, BEGINNING) for _ in range(NUM_BEGINNINGS)]
    return [
        Ask(prompt=source.choice(beginnings) + tokens(source, OWN), max_tokens=ANSWER, exact=True)
        for _ in range(count)
    ]


def mixed(source: random.Random, count: int) -> list[Ask]:
    found = []
    for _ in range(count):
        length = source.randint(400, 900) if source.random() < 0.2 else source.randint(20, 150)
        prompt = tokens(source, length)
        found.append(Ask(prompt=prompt, max_tokens=source.randint(16, 64), exact=True))
    return found


LOADS = {"beginnings": with_beginnings, "mixed": mixed}


@contextmanager
def started(case: Case) -> Iterator[list[str]]:
    """The URLs of a case's servers, warm."""
    with ExitStack() as stack:
        found = case.contenders()
        for each in found:
            stack.enter_context(running(each))
        urls = [f"http://127.0.0.1:{each.port}" for each in found]
        source = random.Random(-1)
        ask = [Ask(prompt=tokens(source, 300), max_tokens=16, exact=True) for _ in range(4 * ROWS)]
        asyncio.run(ask_by_turns(urls, ask, [0.0] * len(ask)))
        yield urls


async def ask_by_turns(urls: list[str], asked: list[Ask], starts: list[float]) -> list[Record]:
    """All answers; fails unless every stream is whole."""
    turns = (
        whole_answers(url, Trace(tuple(starts[number :: len(urls)])), asked[number :: len(urls)])
        for number, url in enumerate(urls)
    )
    return [record for records in await asyncio.gather(*turns) for record in records]


def cached_tokens(urls: list[str]) -> float:
    """Prompt tokens that were found in a cache so far."""
    lines = (
        line for url in urls for line in httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    )
    wanted = "vllm:prefix_cache_hits_total{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted))


def loaded(urls: list[str], name: str, *, rate: float, count: int) -> dict[str, float]:
    """What one load comes to."""
    source = random.Random(name)
    asked = LOADS[name](source, count)
    clock = OpenLoop(rate=rate).starts()
    before = cached_tokens(urls)
    records = asyncio.run(ask_by_turns(urls, asked, [next(clock) for _ in range(count)]))
    time.sleep(1.5)  # Engines report their counts with their outputs, the last ones a moment later.
    summary = summarize(records, load="", slo={})
    return {
        "cached": cached_tokens(urls) - before,
        "prompt_tokens": sum(len(each.prompt) for each in asked),
        "ttft_p50_ms": summary.ttft_ms["p50"],
        "ttft_p99_ms": summary.ttft_ms["p99"],
        "output_tokens_per_s": summary.output_tokens_per_s,
    }


def report(record: dict) -> str:
    cases = record["cases"]
    most = cases[LARGE]["beginnings"]["cached"]
    rows = [
        [load, name, f"{found['cached'] / found['prompt_tokens']:.0%}",
         f"{found['cached'] / most:.0%}" if load == "beginnings" else "-",
         f"{found['ttft_p50_ms']:.0f}", f"{found['ttft_p99_ms']:.0f}",
         f"{found['output_tokens_per_s']:.0f}"]
        for load in LOADS
        for name, found in ((n, case[load]) for n, case in cases.items() if load in case)
    ]  # fmt: skip
    header = ["load", "servers", "of prompts cached", "of the large group's",
              "TTFT p50 ms", "p99 ms", "tokens/s"]  # fmt: skip
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=300, help="of each load [300]")
    parser.add_argument("--rates", type=float, nargs=2, default=[6.0, 2.5], metavar="R",
                        help="requests/s of the two loads [6 2.5]")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    rates = dict(zip(LOADS, options.rates, strict=True))
    cases = {}
    for case in CASES:
        with started(case) as urls:
            cases[case.name] = {
                load: loaded(urls, load, rate=rates[load], count=options.requests)
                for load in case.loads
            }
        print(time.strftime("%X"), case.name, cases[case.name], flush=True)
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"python benchmarks/routing.py --requests {options.requests}",
        "machine": machine(),
        "versions": versions(),
        "requests": options.requests,
        "rates": rates,
        "cases": cases,
    }
    print(report(record))
    if options.write:
        keep(record, RECORD, f"{record['date']}\n\n{report(record)}", MARKS)


if __name__ == "__main__":
    main()
