"""`plan --traffic` held against real servers: the same arrivals, measured and simulated.

    python benchmarks/traffic_validation.py [--groups 1 2] [--rounds 3] [--load 0.5] [--write]

Equal requests for each group at the same time tell how long steps take: on servers with 1, 2, ...
groups, since groups that are at work slow each other down where they share a machine's cores.
Prefills by the servers' own clock (`/metrics`), decodes from token to token. What requests take
beyond that is the front's share. Then each server gets requests of random lengths at random
moments, in open loop, and the same again some times; and the simulator gets them. Every follower
has one thread.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import httpx
import msgspec
import psutil

from marks import keep
from rufus_serve.bench.arrivals import Trace
from rufus_serve.bench.stream import Record
from rufus_serve.bench.summary import Summary, summarize
from rufus_serve.bench.workload import Ask
from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Arrival, Lengths, Load
from rufus_serve.plan.traffic.group_candidates import of_measured
from rufus_serve.plan.traffic.measures import Measures, measure
from rufus_serve.plan.traffic.simulation import simulate
from rufus_serve.plan.traffic.sizing import least_groups
from rufus_serve.plan.traffic.step_times import DecodePoint, Measured, PrefillPoint
from serving_report import table
from serving_servers import (
    PORT,
    ROOT,
    Contender,
    Running,
    cpu_seconds,
    machine,
    ours,
    running,
    versions,
)
from whole_answers import whole_answers

RECORD = ROOT / "benchmarks" / "results" / "traffic_validation.json"
MARKS = ("<!-- traffic: begin -->", "<!-- traffic: end -->")
MAX_MODEL_LEN, ROWS, LARGEST_PREFILL, BLOCK_SIZE = 1024, 8, 512, 32
PREFILL_TOKENS, DECODE_ROWS, DECODE_PROMPTS = (32, 128, 256, 512), (1, 2, 4, 8), (32, 448)
PROMPT, OUTPUT = Lengths("uniform", 32, 448), Lengths("uniform", 16, 64)
NUM_BLOCKS = 513
"""The null block included."""
REPEATS, PROBE_OUTPUT, HEARTBEATS_S, SETTLE_S = 3, 48, 1.2, 5.0
AGREE = 0.15


@dataclass(frozen=True)
class Server:
    """One that runs, and how many groups it has."""

    groups: int
    process: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{PORT}"

    def ask(self, asked: list[Ask], starts: list[float]) -> list[Record]:
        """Send `asked` at `starts`; fails unless every stream is whole."""
        return asyncio.run(whole_answers(self.url, Trace(tuple(starts)), asked))

    def cores(self) -> tuple[float, float]:
        """CPU seconds so far: its own with the clients', and those of the whole machine."""
        return cpu_seconds([*self.process.processes(), psutil.Process()])

    def steps(self, phase: str) -> tuple[float, int]:
        """Seconds and number of all groups' steps so far."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        found = [
            sum(float(value) for value in re.findall(
                rf'^rufus_step_seconds_{part}{{[^}}]*phase="{phase}"[^}}]*}} (\S+)', text, re.M
            ))
            for part in ("sum", "count")
        ]  # fmt: skip
        return found[0], int(found[1])


def contender(groups: int) -> Contender:
    more = [
        f"--groups={groups}", "--cluster.kind=local", "--cpu.threads=1", f"--max-num-seqs={ROWS}",
        f"--max-model-len={MAX_MODEL_LEN}", f"--block-size={BLOCK_SIZE}", "--no-prefix-caching",
        f"--num-blocks={NUM_BLOCKS}",
    ]  # fmt: skip
    return replace(ours(*more), name=f"{groups} groups")


def prompts(source: random.Random, lengths: list[int], outputs: list[int]) -> list[Ask]:
    return [
        Ask(
            prompt=tuple(source.randrange(1000, 40000) for _ in range(length)),
            max_tokens=output,
            exact=True,
        )
        for length, output in zip(lengths, outputs, strict=True)
    ]


@dataclass(frozen=True)
class Probe:
    """Equal requests for each group at once: medians over repetitions, in milliseconds."""

    step_ms: float
    """By the server's own clock."""
    ttft_ms: float
    gap_ms: float
    """From token to token while every request has begun and none has ended; 0 without any."""


def probe(
    server: Server, source: random.Random, phase: str, *, tokens: int, output: int, rows: int
) -> Probe:
    """What a step of `phase` takes while each group has `rows` requests.

    The median of some repetitions' means, so that a moment of other work does not count.
    """
    count = server.groups * rows
    steps, waits, gaps = [], [], []
    before = server.steps(phase)
    for _ in range(REPEATS):
        asked = prompts(source, [tokens] * count, [output] * count)
        records = server.ask(asked, [0.0] * count)
        # Engines report their counts with a heartbeat.
        time.sleep(HEARTBEATS_S)
        after = server.steps(phase)
        steps.append(1e3 * (after[0] - before[0]) / (after[1] - before[1]))
        waits.append(1e3 * statistics.median(each.ttft_s for each in records))
        gaps.append(1e3 * mean_gap_s(records))
        before = after
    return Probe(*(statistics.median(each) for each in (steps, waits, gaps)))


def mean_gap_s(records: list[Record]) -> float:
    """Between tokens while all of `records` were under way."""
    begin = max(each.arrivals_s[0] for each in records)
    end = min(each.arrivals_s[-1] for each in records)
    gaps = [
        later - sooner
        for each in records
        for sooner, later in pairwise(each.arrivals_s)
        if sooner >= begin and later <= end
    ]
    return statistics.fmean(gaps) if gaps else 0.0


@dataclass(frozen=True)
class Probes:
    """Of a server whose groups are all at work."""

    prefill: dict[int, Probe]
    """By tokens."""
    decode: dict[tuple[int, int], Probe]
    """By rows and tokens of the prompt."""

    @classmethod
    def of(cls, server: Server, source: random.Random) -> "Probes":
        """Ask, and read the server's own clock."""
        return cls(
            {
                tokens: probe(server, source, "prefill", tokens=tokens, output=1, rows=1)
                for tokens in PREFILL_TOKENS
            },
            {
                (rows, tokens): probe(
                    server, source, "decode", tokens=tokens, output=PROBE_OUTPUT, rows=rows
                )
                for rows in DECODE_ROWS
                for tokens in DECODE_PROMPTS
            },
        )

    @property
    def between_ms(self) -> float:
        """From a step's end to the next one's beginning, where one row decodes."""
        gaps = [each.gap_ms - each.step_ms for (rows, _), each in self.decode.items() if rows == 1]
        return max(0.0, statistics.median(gaps))

    @property
    def front_ms(self) -> float:
        """What requests take beside their steps."""
        waits = [each.ttft_ms - each.step_ms for each in self.prefill.values()]
        return max(0.0, statistics.median(waits) - self.between_ms)


def measured(probes: list[Probes]) -> Measured:
    """Step times with 1, 2, ... groups at work; the overheads are the last one's."""
    between_ms = probes[0].between_ms
    return Measured(
        batching=Batching(
            max_num_seqs=ROWS,
            largest_prefill=LARGEST_PREFILL,
            prefill_tokens_per_step=LARGEST_PREFILL,
            num_blocks=NUM_BLOCKS - 1,
            block_size=BLOCK_SIZE,
            batched_prefill=True,
            prefix_caching=False,
        ),
        prefill=tuple(
            PrefillPoint(tokens, each.step_ms, groups=groups)
            for groups, of_groups in enumerate(probes, 1)
            for tokens, each in of_groups.prefill.items()
        ),
        # From token to token at the client: what delivery takes of the cores slows steps too.
        decode=tuple(
            DecodePoint(rows, tokens + PROBE_OUTPUT // 2, each.gap_ms - between_ms, groups=groups)
            for groups, of_groups in enumerate(probes, 1)
            for (rows, tokens), each in of_groups.decode.items()
        ),
        front_ms=probes[-1].front_ms,
        between_ms=between_ms,
    )


def arrivals_of(groups: int, steps: Measured, options: argparse.Namespace) -> list[Arrival]:
    """Requests that keep `groups` at work for the asked share of the time, at random moments."""
    candidate = of_measured(steps, num_nodes=1, recover_s=1.0)
    demand = Load(
        rate=1.0, prompt=PROMPT, output=OUTPUT, max_model_len=MAX_MODEL_LEN, seed=options.seed
    )
    # Groups are whole numbers, so the share of one request is asked for a thousand.
    thousand = msgspec.structs.replace(demand, rate=1000.0)
    times = (candidate.times, *candidate.shared_times)[-1]
    busiest = replace(candidate, times=times, shared_times=())
    capacity = groups * 1000.0 / least_groups(busiest, thousand)
    demand = msgspec.structs.replace(demand, rate=options.load * capacity)
    return demand.arrivals(share=1.0, count=options.requests * groups)


def figures(found: Summary | Measures) -> dict[str, float]:
    """What is compared."""
    return {
        "TTFT p50 ms": found.ttft_ms["p50"],
        "TTFT p99 ms": found.ttft_ms["p99"],
        "TPOT p50 ms": found.tpot_ms["p50"],
        "TPOT p99 ms": found.tpot_ms["p99"],
        "tokens/s": found.output_tokens_per_s,
    }


def validate(server: Server, steps: Measured, options: argparse.Namespace) -> dict:
    """The server's figures in each round, and the simulator's, for the same arrivals."""
    arrivals = arrivals_of(server.groups, steps, options)
    source = random.Random(options.seed)
    candidate = of_measured(steps, num_nodes=1, recover_s=1.0)
    outcome = simulate(candidate.fleet(server.groups), arrivals)
    return {
        "rate": (len(arrivals) - 1) / (arrivals[-1].at_s - arrivals[0].at_s),
        "requests": len(arrivals),
        "steps": msgspec.to_builtins(steps),
        "rounds": [asked_once(server, source, arrivals) for _ in range(options.rounds)],
        "simulator": figures(measure(outcome, num_groups=server.groups)),
    }


def asked_once(server: Server, source: random.Random, arrivals: list[Arrival]) -> dict:
    """One round: its figures, and what other programs used of the cores meanwhile."""
    asked = prompts(
        source, [len(each.tokens) for each in arrivals], [each.num_output for each in arrivals]
    )
    before = server.cores()
    records = server.ask(asked, [each.at_s for each in arrivals])
    own, whole = (after - began for after, began in zip(server.cores(), before, strict=True))
    summary = summarize(records, load="", slo={})
    others = max(0.0, whole - own) / summary.duration_s
    found = {"figures": figures(summary), "cores_used_by_others": round(others, 2)}
    print(time.strftime("%X"), server.groups, json.dumps(found), flush=True)
    return found


def compared(found: dict) -> dict[str, tuple[float, float, float]]:
    """By figure: the median of the rounds, their spread, and the simulator's error."""
    pairs = {}
    for name, simulated in found["simulator"].items():
        rounds = [each["figures"][name] for each in found["rounds"]]
        middle = statistics.median(rounds)
        pairs[name] = middle, max(rounds) / min(rounds) - 1, simulated / middle - 1
    return pairs


def report(record: dict) -> str:
    rows = [
        [groups, f"{found['rate']:.2f}", name, f"{middle:.1f}", f"{spread:.0%}",
         f"{found['simulator'][name]:.1f}", f"{error:+.0%}"]
        for groups, found in record["groups"].items()
        for name, (middle, spread, error) in compared(found).items()
    ]  # fmt: skip
    header = ["groups", "requests/s", "measure", "server", "spread", "simulator", "error"]
    return table(header, rows)


def heading(record: dict) -> str:
    """When, and how busy other programs kept the machine."""
    rounds = [each for found in record["groups"].values() for each in found["rounds"]]
    most = max(each["cores_used_by_others"] for each in rounds)
    return f"{record['date']}; other programs used up to {most:g} cores meanwhile."


def warm(server: Server) -> None:
    """All groups have computed, and nothing of the start is left to do."""
    count = 8 * server.groups
    server.ask(prompts(random.Random(), [64] * count, [16] * count), [0.0] * count)
    time.sleep(SETTLE_S)


def all_groups(options: argparse.Namespace) -> Iterator[tuple[int, dict]]:
    """One group first: its step times are those of a group alone."""
    probes = []
    for groups in range(1, max(options.groups) + 1):
        with running(contender(groups)) as process:
            server = Server(groups, process)
            warm(server)
            probes.append(Probes.of(server, random.Random(options.seed)))
            if groups in options.groups:
                yield groups, validate(server, measured(probes), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--requests", type=int, default=120, help="of a round, a group [120]")
    parser.add_argument("--rounds", type=int, default=3, help="of the same load [3]")
    parser.add_argument("--load", type=float, default=0.5, help="share of what groups can do [0.5]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=Path, help="write the last server's step times here")
    parser.add_argument("--write", action="store_true", help="renew the record and the README")
    options = parser.parse_args()
    found = dict(all_groups(options))
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/traffic_validation.py",
        "machine": machine(),
        "versions": versions(),
        "groups": found,
    }
    print(report(record))
    if options.steps:
        options.steps.write_text(json.dumps(found[max(found)]["steps"], indent=1) + "\n")
    if options.write:
        keep(record, RECORD, f"{heading(record)}\n\n{report(record)}", MARKS)
    worst = max(abs(error) for each in found.values() for *_, error in compared(each).values())
    if worst > AGREE:
        raise SystemExit(f"the simulator is off by {worst:.0%}, more than {AGREE:.0%}")


if __name__ == "__main__":
    main()
