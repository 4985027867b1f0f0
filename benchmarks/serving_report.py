"""What `serving.py` measured, as percentiles, ratios and Markdown."""

import statistics

import numpy as np

from serving_load import OUTPUT_TOKENS, WORKLOADS
from serving_servers import OURS, PEER

RATED = ("ttft_p50_ms", "tpot_p50_ms", "e2e_p50_ms", "tokens_per_s")


def summary(turns: list[dict]) -> dict[str, object]:
    """Of one server: its starts, and all rounds' requests of each workload."""
    names = [workload.name for workload in WORKLOADS]
    return {
        "start_s": [turn["start_s"] for turn in turns],
        "phases": [turn["phases"] for turn in turns],
        "repetition": {
            name.replace("_s", "_p50_ms"): _percentile([turn["repetition"] for turn in turns], name)
            for name in ("cold_ttft_s", "repeated_ttft_s")
        },
        "workloads": {
            name: _summary_of_runs([turn["workloads"][name] for turn in turns]) for name in names
        },
    }


def _summary_of_runs(runs: list[dict]) -> dict[str, object]:
    """Percentiles over all rounds' requests; throughput is the mean of the rounds."""
    found: dict[str, object] = {
        f"{what}_p{p}_ms": _percentile(runs, f"{what}_s", p)
        for what in ("ttft", "tpot", "e2e")
        for p in (50, 90)
    }
    rates = [len(run["e2e_s"]) * OUTPUT_TOKENS / run["took_s"] for run in runs]
    found["tokens_per_s"] = round(statistics.mean(rates), 1)
    found["tokens_per_s_of_rounds"] = [round(rate, 1) for rate in rates]
    others = [run["cores_used_by_others"] for run in runs]
    found["cores_used_by_others"] = round(statistics.mean(others), 2)
    return found


def _percentile(runs: list[dict], name: str, p: int = 50) -> float:
    """In milliseconds, of seconds."""
    values = [value * 1e3 for run in runs for value in run[name]]
    return round(float(np.percentile(values, p)), 1)


def ratios(servers: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Ours over each peer: below 1 is faster, for tokens/s above 1."""
    pairs = [
        (ours, peer)
        for ours in servers
        if ours.startswith(OURS)
        for peer in servers
        if peer.startswith(PEER)
    ]
    return {
        f"{ours} / {peer}, {workload.name}": {
            key: round(
                servers[ours]["workloads"][workload.name][key]
                / servers[peer]["workloads"][workload.name][key],
                2,
            )
            for key in RATED
        }
        for ours, peer in pairs
        for workload in WORKLOADS
    }


def table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def report(record: dict) -> str:
    """The record as Markdown."""
    first = "page cache dropped" if record["page_cache_dropped"] else "page cache not dropped"
    slots = ["server", "load", "TTFT p50 / p90 ms", "TPOT p50 / p90 ms", "E2E p50 / p90 ms"]
    load = record["load"]
    return "\n\n".join([
        f"{record['date']}, {record['machine']['cpu']}, {record['machine']['cores']} cores; "
        + ", ".join(f"{name} {value}" for name, value in record["versions"].items())
        + ". 'Others' is how many cores other work on the machine took meanwhile.",
        table([*slots, "tokens/s (rounds)", "others"], _rows(record)),
        "Ours over the peer: of times, below 1 is faster; of tokens/s, above 1.",
        table(
            ["pair", "TTFT", "TPOT", "E2E", "tokens/s"],
            [[name, *values.values()] for name, values in record["ratios"].items()],
        ),
        f"Prompts that begin with the same {load['repeated_tokens']} tokens and end with "
        f"{load['new_tokens']} others: ms to the first token of the first one, and of the next.",
        table(["server", "first", "next", "times faster"], _repetitions(record)),
        f"Seconds from the command to ready (first: {first}, nothing compiled yet).",
        table(["server", "first", "warm"], _starts(record)),
        _phases(record),
    ])  # fmt: skip


def _rows(record: dict) -> list[list[object]]:
    rows = []
    for name, found in record["servers"].items():
        for workload, of in found["workloads"].items():
            pairs = [f"{of[f'{w}_p50_ms']} / {of[f'{w}_p90_ms']}" for w in ("ttft", "tpot", "e2e")]
            rates = of["tokens_per_s_of_rounds"]
            spread = f"{of['tokens_per_s']} ({min(rates)} to {max(rates)})"
            rows.append([name, workload, *pairs, spread, of["cores_used_by_others"]])
    return rows


def _repetitions(record: dict) -> list[list[object]]:
    rows = []
    for name, found in record["servers"].items():
        cold, repeated = found["repetition"].values()
        rows.append([name, cold, repeated, round(cold / repeated, 1)])
    return rows


def _starts(record: dict) -> list[list[object]]:
    rows = []
    for name, found in record["servers"].items():
        first, *warm = found["start_s"]
        rows.append([name, first, min(warm) if warm else "-"])
    return rows


def _phases(record: dict) -> str:
    return "\n".join(
        f"- {name}, {found['start_s'][index]} s: " + "; ".join(f"{k} {v}" for k, v in each.items())
        for name, found in record["servers"].items()
        for index, each in enumerate(found["phases"])
        if each
    )


def short_report(record: dict) -> str:
    """For the project's README: a line a server, and our best and worst row beside each peer."""
    few, many = (WORKLOADS[0].name, WORKLOADS[1].name)
    rows = []
    for name, found in record["servers"].items():
        cells = [
            f"{of['ttft_p50_ms']:.0f} / {of['tpot_p50_ms']:.1f}"
            for of in (found["workloads"][few], found["workloads"][many])
        ]
        rates = [f"{of['tokens_per_s']:.0f}" for of in found["workloads"].values()]
        rows.append([name, *cells, " / ".join(rates[1::2]), f"{min(found['start_s']):.0f}"])
    inputs = " / ".join(str(workload.prompt_tokens) for workload in WORKLOADS[1::2])
    header = [
        "server", f"TTFT / TPOT ms, {few}", many, f"tokens/s, 8 at once, {inputs} in", "s to ready",
    ]  # fmt: skip
    return table(header, rows) + "\n\n" + _extremes(record)


def _extremes(record: dict) -> str:
    """In words: the best and the worst of our rows."""
    rated = {name: values["tokens_per_s"] for name, values in record["ratios"].items()}
    if not rated:
        return "No peer took part."
    worst, best = min(rated, key=rated.__getitem__), max(rated, key=rated.__getitem__)
    return (
        f"Ours over the peer in tokens/s: worst row {rated[worst]:.2f} ({worst}), "
        f"best row {rated[best]:.2f} ({best})."
    )
