"""`plan --traffic` held against real servers: the same arrivals, measured and simulated.

    python benchmarks/traffic_validation.py [--groups 1 2] [--requests 150] [--load 0.6] [--write]

A server of so many groups is asked for equal requests, one for each group at the same time, and
tells by `/metrics` how long its steps take: the step times that the simulator is given. What
requests take beyond their steps is the front's share. Then the server gets requests of
random lengths at random times, in open loop, and the simulator gets the same. Groups share this
machine's cores, so steps are measured while all groups are at work. Every follower has one thread.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import msgspec

from marks import keep
from rufus_serve.bench.arrivals import Trace
from rufus_serve.bench.stream import Record
from rufus_serve.bench.summary import summarize
from rufus_serve.bench.workload import Ask
from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Lengths, Load
from rufus_serve.plan.traffic.group_candidates import of_measured
from rufus_serve.plan.traffic.measures import measure
from rufus_serve.plan.traffic.simulation import simulate
from rufus_serve.plan.traffic.sizing import least_groups
from rufus_serve.plan.traffic.step_times import DecodePoint, Measured, PrefillPoint
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

RECORD = ROOT / "benchmarks" / "results" / "traffic_validation.json"
MARKS = ("<!-- traffic: begin -->", "<!-- traffic: end -->")
MAX_MODEL_LEN, ROWS, LARGEST_PREFILL, BLOCK_SIZE = 1024, 8, 512, 32
PREFILL_TOKENS, DECODE_ROWS, DECODE_PROMPTS = (32, 128, 256, 512), (1, 2, 4, 8), (32, 448)
PROMPT, OUTPUT = Lengths("uniform", 32, 448), Lengths("uniform", 16, 64)
NUM_BLOCKS = 513
"""The null block included."""
REPEATS, PROBE_OUTPUT, HEARTBEATS_S = 5, 48, 1.5
AGREE = 0.15


@dataclass(frozen=True)
class Server:
    """One that runs, and how many groups it has."""

    groups: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{PORT}"

    def ask(self, asked: list[Ask], starts: list[float]) -> list[Record]:
        """Send `asked` at `starts`; fails unless every stream is whole."""
        return asyncio.run(whole_answers(self.url, Trace(tuple(starts)), asked))

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


def probe(
    server: Server, source: random.Random, phase: str, *, tokens: int, output: int, rows: int
) -> tuple[float, list[Record]]:
    """Milliseconds of a step of `phase` while each group has `rows` equal requests: the median of
    some repetitions' means, so that a moment of other work on the machine does not count."""
    count = server.groups * rows
    found, records = [], []
    before = server.steps(phase)
    for _ in range(REPEATS):
        asked = prompts(source, [tokens] * count, [output] * count)
        records += server.ask(asked, [0.0] * count)
        # Engines report their counts with a heartbeat.
        time.sleep(HEARTBEATS_S)
        after = server.steps(phase)
        found.append(1e3 * (after[0] - before[0]) / (after[1] - before[1]))
        before = after
    return statistics.median(found), records


def measured(server: Server, source: random.Random) -> Measured:
    """The server's step times, and what requests take beside them."""
    prefill, decode, front, between = [], [], [], []
    for tokens in PREFILL_TOKENS:
        step_ms, records = probe(server, source, "prefill", tokens=tokens, output=1, rows=1)
        prefill.append(PrefillPoint(tokens, step_ms))
        front.append(1e3 * statistics.median(each.ttft_s for each in records) - step_ms)
    for rows in DECODE_ROWS:
        for tokens in DECODE_PROMPTS:
            step_ms, records = probe(
                server, source, "decode", tokens=tokens, output=PROBE_OUTPUT, rows=rows
            )
            decode.append(DecodePoint(rows, tokens + PROBE_OUTPUT // 2, step_ms))
            if rows == 1:
                tpot_ms = 1e3 * statistics.median(each.tpot_s for each in records)
                between.append(tpot_ms - step_ms)
    between_ms = max(0.0, statistics.median(between))
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
        prefill=tuple(prefill),
        decode=tuple(decode),
        front_ms=max(0.0, statistics.median(front) - between_ms),
        between_ms=between_ms,
    )


def validate(server: Server, *, load: float, num_requests: int, seed: int) -> dict:
    """The server's and the simulator's figures for the same arrivals."""
    source = random.Random(seed)
    server.ask(prompts(source, [64] * 16, [16] * 16), [0.0] * 16)
    time.sleep(HEARTBEATS_S)
    steps = measured(server, source)
    candidate = of_measured(steps, num_nodes=1, recover_s=1.0)
    demand = Load(rate=1.0, prompt=PROMPT, output=OUTPUT, max_model_len=MAX_MODEL_LEN, seed=seed)
    # Groups are whole numbers, so the share of one request is asked for a thousand.
    thousand = msgspec.structs.replace(demand, rate=1000.0)
    capacity = server.groups * 1000.0 / least_groups(candidate, thousand)
    demand = msgspec.structs.replace(demand, rate=load * capacity)
    arrivals = demand.arrivals(share=1.0, count=num_requests)
    asked = prompts(
        source, [len(each.tokens) for each in arrivals], [each.num_output for each in arrivals]
    )
    records = server.ask(asked, [each.at_s for each in arrivals])
    real = summarize(records, load="", slo={})
    outcome = simulate(candidate.fleet(server.groups), arrivals)
    simulated = measure(outcome, num_groups=server.groups)
    pairs = {
        f"{name.upper()} {part} ms": (getattr(real, f"{name}_ms")[part],
                                      getattr(simulated, f"{name}_ms")[part])
        for name in ("ttft", "tpot") for part in ("p50", "p99")
    }  # fmt: skip
    pairs["tokens/s"] = (real.output_tokens_per_s, simulated.output_tokens_per_s)
    return {"rate": demand.rate, "steps": msgspec.to_builtins(steps), "pairs": pairs}


def report(record: dict) -> str:
    rows = [
        [groups, f"{found['rate']:.2f}", name, f"{real:.1f}", f"{simulated:.1f}",
         f"{simulated / real - 1:+.0%}"]
        for groups, found in record["groups"].items()
        for name, (real, simulated) in found["pairs"].items()
    ]  # fmt: skip
    header = ["groups", "requests/s", "measure", "server", "simulator", "error"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--requests", type=int, default=150, help="of each load [150]")
    parser.add_argument("--load", type=float, default=0.6, help="share of what groups can do [0.6]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=Path, help="write the last server's step times here")
    parser.add_argument("--write", action="store_true", help="renew the record and the README")
    options = parser.parse_args()
    found = {}
    for groups in options.groups:
        with running(contender(groups)):
            server = Server(groups)
            found[groups] = validate(
                server, load=options.load, num_requests=options.requests, seed=options.seed
            )
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/traffic_validation.py",
        "machine": machine(),
        "versions": versions(),
        "groups": found,
    }
    print(report(record))
    if options.steps:
        options.steps.write_text(json.dumps(found[options.groups[-1]]["steps"], indent=1) + "\n")
    if options.write:
        keep(record, RECORD, f"{record['date']}\n\n{report(record)}", MARKS)
    worst = max(
        abs(simulated / real - 1)
        for each in found.values()
        for real, simulated in each["pairs"].values()
    )
    if worst > AGREE:
        raise SystemExit(f"the simulator is off by {worst:.0%}, more than {AGREE:.0%}")


if __name__ == "__main__":
    main()
