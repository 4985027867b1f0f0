"""Tokens per second of one client with speculation and without, in turns on one machine.

    python benchmarks/speculation.py [--rounds 2] [--max-tokens 128] [--write]

Two servers of the same model run side by side and are asked in turns, so that a slow minute hits
both. Half of the work copies: texts and code are given back changed a little, greedily. The other
half repeats nothing: stories at temperature 1, with a seed, so that both servers write the same.
Answers must be equal to the token.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from marks import keep
from serving_servers import MAX_MODEL_LEN, MODEL, ROOT, Contender, Running, machine, versions
from speculation_texts import BEGINNINGS, copies

RECORD = ROOT / "benchmarks" / "results" / "speculation.json"
MARKS = ("<!-- speculation: begin -->", "<!-- speculation: end -->")
PORTS = {"without": 8100, "with": 8101}
COUNTED = ("draft", "accepted")


@dataclass
class Work:
    """One kind of requests, and how fast each server answered them."""

    name: str
    bodies: list[dict[str, Any]]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {each: [] for each in PORTS})
    num_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    def tokens_per_s(self, server: str) -> float:
        """Of all rounds together."""
        return self.num_tokens / sum(self.seconds[server])

    def ratios(self) -> list[float]:
        """Of each request, without / with: above 1 is faster with."""
        pairs = zip(self.seconds["without"], self.seconds["with"], strict=True)
        return [plain / drafted for plain, drafted in pairs]


def works(max_tokens: int) -> list[Work]:
    common = {"model": Path(MODEL).name, "max_tokens": max_tokens, "return_token_ids": True}
    copying = [common | {"prompt": prompt, "temperature": 0} for prompt in copies()]
    telling = [
        common | {"prompt": text, "temperature": 1, "seed": seed, "ignore_eos": True}
        for seed, text in enumerate(BEGINNINGS)
    ]
    return [Work("copies", copying), Work("stories", telling)]


def contender(server: str, flags: list[str]) -> Contender:
    command = [
        str(Path(sys.executable).parent / "rufus-serve"), "serve", MODEL, "--cluster.kind=local",
        f"--max-model-len={MAX_MODEL_LEN}", f"--port={PORTS[server]}", *flags,
    ]  # fmt: skip
    return Contender(server, command, "/ready", port=PORTS[server])


def ask(server: str, body: dict[str, Any]) -> tuple[float, list[int]]:
    """Seconds and tokens of one answer."""
    began = time.perf_counter()
    answer = httpx.post(
        f"http://127.0.0.1:{PORTS[server]}/v1/completions", json=body, timeout=300
    ).raise_for_status()
    spent = time.perf_counter() - began
    return spent, answer.json()["choices"][0]["token_ids"]


def counted() -> list[int]:
    """Drafted and accepted tokens so far."""
    text = httpx.get(f"http://127.0.0.1:{PORTS['with']}/metrics", timeout=30).text
    names = [f"vllm:spec_decode_num_{kind}_tokens_total" for kind in COUNTED]
    return [
        int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)))
        for name in names
    ]


def measure(work: Work, num_rounds: int) -> None:
    """Ask both servers for everything, each as often first as second."""
    drafted, accepted = counted()
    for number, body in enumerate(work.bodies * num_rounds):
        turn = sorted(PORTS, reverse=number % 2 == 1)
        found = {server: ask(server, body) for server in turn}
        tokens = {server: answer[1] for server, answer in found.items()}
        if tokens["with"] != tokens["without"]:
            raise SystemExit(f"the answers differ: {body['prompt']!r}")
        work.num_tokens += len(tokens["with"])
        for server, (spent, _) in found.items():
            work.seconds[server].append(spent)
    now_drafted, now_accepted = counted()
    work.drafted, work.accepted = now_drafted - drafted, now_accepted - accepted


def row(work: Work) -> dict[str, Any]:
    ratios = sorted(work.ratios())
    return {
        "work": work.name,
        "answers": len(ratios),
        "tokens": work.num_tokens,
        "tokens/s without": round(work.tokens_per_s("without"), 1),
        "tokens/s with": round(work.tokens_per_s("with"), 1),
        "ratio": round(work.tokens_per_s("with") / work.tokens_per_s("without"), 2),
        "ratio of an answer, least / median / most": " / ".join(
            f"{each:.2f}" for each in (ratios[0], statistics.median(ratios), ratios[-1])
        ),
        "drafted": work.drafted,
        "accepted": work.accepted,
    }


def report(record: dict[str, Any]) -> str:
    """The README's part."""
    rows = record["rows"]
    head = " | ".join(rows[0])
    lines = [f"| {head} |", f"|{' --- |' * len(rows[0])}"]
    lines += [f"| {' | '.join(str(value) for value in each.values())} |" for each in rows]
    of = record["machine"]
    made = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return f"{record['date']}, {of['cpu']}, {of['cores']} cores; {made}.\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--speculative-tokens", type=int, default=0, help="0: the setting's own")
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    flags = ["--speculation.method=ngram"]
    if options.speculative_tokens:
        flags.append(f"--speculation.num-speculative-tokens={options.speculative_tokens}")
    done = works(options.max_tokens)
    with contextlib.ExitStack() as stack:
        for server in PORTS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sp-")))
            chosen = contender(server, flags if server == "with" else [])
            stack.callback(Running(chosen, folder).stop)
        for work in done:
            for server in PORTS:
                ask(server, work.bodies[0])
            measure(work, options.rounds)
            print(json.dumps(row(work)), flush=True)
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/speculation.py",
        "machine": machine(),
        "versions": versions(),
        "rows": [row(work) for work in done],
    }
    if options.write:
        keep(record, RECORD, report(record), MARKS)


if __name__ == "__main__":
    main()
