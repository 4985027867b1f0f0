"""`rufus-serve bench` beside `vllm bench serve`: the same load on the same server, in turns.

    python benchmarks/bench_agreement.py [--rounds 6] [--write]

Both ask for random prompts of the same length and answers of the same length, in a closed loop,
and each round swaps who goes first. A ratio is the median of the rounds' own, since the machine's
speed differs from one minute to the next; it should be within 5 % of one, which is told, and
decides the exit code.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from marks import keep
from serving_servers import MODEL, PORT, ROOT, Contender, machine, running, versions

RECORD = ROOT / "benchmarks" / "results" / "bench_agreement.json"
MARKS = ("<!-- agreement: begin -->", "<!-- agreement: end -->")
BIN = Path(sys.executable).parent
REQUESTS, CONCURRENCY, INPUT_TOKENS, OUTPUT_TOKENS = 64, 8, 128, 64
AGREE = 0.05
MEASURES = {
    "TTFT mean ms": ("ttft_ms", "mean", "mean_ttft_ms"),
    "TTFT p50 ms": ("ttft_ms", "p50", "median_ttft_ms"),
    "TPOT mean ms": ("tpot_ms", "mean", "mean_tpot_ms"),
    "TPOT p50 ms": ("tpot_ms", "p50", "median_tpot_ms"),
    "ITL mean ms": ("itl_ms", "mean", "mean_itl_ms"),
    "output tokens/s": ("output_tokens_per_s", "", "output_throughput"),
}
"""What we call it, where `rufus-serve bench` keeps it, and what vLLM calls it."""

Turn = Callable[[int, Path], dict[str, float]]


def ours(seed: int, folder: Path) -> dict[str, float]:
    out = folder / "ours.json"
    run(
        BIN / "rufus-serve", "bench", f"--url=http://127.0.0.1:{PORT}", f"--requests={REQUESTS}",
        f"--concurrency={CONCURRENCY}", f"--input-tokens={INPUT_TOKENS}", f"--seed={seed}",
        f"--output-tokens={OUTPUT_TOKENS}", f"--out={out}",
    )  # fmt: skip
    found = json.loads(out.read_text())["loads"][0]["summary"]
    assert (found["requests"], found["output_tokens"]) == (REQUESTS, REQUESTS * OUTPUT_TOKENS)
    return {
        name: found[field][part] if part else found[field]
        for name, (field, part, _) in MEASURES.items()
    }


def vllms(seed: int, folder: Path) -> dict[str, float]:
    out = folder / "vllm.json"
    run(
        BIN / "vllm", "bench", "serve", "--backend=openai", f"--base-url=http://127.0.0.1:{PORT}",
        "--endpoint=/v1/completions", f"--model={MODEL}", f"--served-model-name={Path(MODEL).name}",
        "--dataset-name=random", f"--random-input-len={INPUT_TOKENS}", "--temperature=0",
        f"--random-output-len={OUTPUT_TOKENS}", f"--num-prompts={REQUESTS}", "--ignore-eos",
        f"--max-concurrency={CONCURRENCY}", f"--seed={seed}", "--disable-tqdm", "--save-result",
        f"--result-dir={folder}", f"--result-filename={out.name}",
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["completed"] == REQUESTS
    return {name: found[field] for name, (_, _, field) in MEASURES.items()}


def run(*command: object) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[:3]} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def measure(rounds: int) -> dict[str, list[dict[str, float]]]:
    command = [
        str(BIN / "rufus-serve"), "serve", MODEL, f"--port={PORT}", "--cluster.kind=local",
        "--max-model-len=2048", "--no-prefix-caching",
    ]  # fmt: skip
    turns: dict[str, Turn] = {"rufus-serve bench": ours, "vllm bench serve": vllms}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    with (
        running(Contender("ours", command, "/ready")),
        tempfile.TemporaryDirectory(prefix="agree-") as folder,
    ):
        ours(0, Path(folder))  # the server's first requests are slower
        for index in range(rounds):
            order = list(turns.items())
            for name, turn in order[::-1] if index % 2 else order:
                found[name].append(turn(index + 1, Path(folder)))
                print(time.strftime("%X"), name, found[name][-1], flush=True)
    return found


def compare(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By measure: both medians, and the median of ours over vLLM's, round by round."""
    table = {}
    for name in MEASURES:
        mine, theirs = ([each[name] for each in rounds] for rounds in found.values())
        table[name] = {
            "rufus-serve bench": statistics.median(mine),
            "vllm bench serve": statistics.median(theirs),
            "ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        }
    return table


def report(record: dict) -> str:
    lines = [
        f"{record['date']}, {record['machine']['cpu']}, {record['machine']['cores']} cores; "
        f"{REQUESTS} requests, {CONCURRENCY} at once, {INPUT_TOKENS} tokens in, "
        f"{OUTPUT_TOKENS} out, medians of {record['rounds']} rounds, "
        "ratios by round.",
        "",
        "| measure | rufus-serve bench | vllm bench serve | ratio |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {each['rufus-serve bench']:.1f} | {each['vllm bench serve']:.1f} "
        f"| {each['ratio']:.3f} |"
        for name, each in record["table"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="keep the record and README table")
    options = parser.parse_args()
    found = measure(options.rounds)
    table = compare(found)
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/bench_agreement.py --write",
        "machine": machine(),
        "versions": versions(),
        "rounds": options.rounds,
        "table": table,
        "runs": found,
    }
    print(report(record))
    if options.write:
        keep(record, RECORD, report(record), MARKS)
    apart = [name for name, each in table.items() if abs(each["ratio"] - 1) > AGREE]
    if apart:
        raise SystemExit(f"further apart than {AGREE:.0%}: {', '.join(apart)}")


if __name__ == "__main__":
    main()
