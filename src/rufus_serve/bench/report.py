"""What a benchmark leaves behind: JSON with every request, CSV with a line a load, PNG curves."""

import csv
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.bench.runner import Run
from rufus_serve.bench.summary import Summary
from rufus_serve.errors import ConfigError


def check(path: Path) -> None:
    """Refuse, before anything was measured, what `write` could not do.

    Raises:
        ConfigError: an unknown ending, an absent folder, or a PNG without matplotlib.
    """
    if path.suffix not in _WRITERS:
        raise ConfigError(f"{path}: results are written as {', '.join(_WRITERS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        raise ConfigError("a PNG needs matplotlib: pip install 'rufus-serve[bench]'")


def write(path: Path, summaries: Sequence[Summary], runs: Sequence[Run]) -> None:
    """To `path`, in the form that its ending names.

    Raises:
        ConfigError: the disk refuses.
    """
    try:
        _WRITERS[path.suffix](path, summaries, runs)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def row(summary: Summary) -> dict[str, Any]:
    """One flat line: spreads as `ttft_ms_p50` and so on, errors counted."""
    return dict(_flat(summary))


def _flat(summary: Summary) -> Iterator[tuple[str, Any]]:
    for name, value in msgspec.structs.asdict(summary).items():
        if name == "errors":
            yield "errors", sum(value.values())
        elif isinstance(value, dict):
            for part, number in value.items():
                yield f"{name}_{part}", round(number, 3)
        else:
            yield name, round(value, 3) if isinstance(value, float) else value


def _write_json(path: Path, summaries: Sequence[Summary], runs: Sequence[Run]) -> None:
    loads = [
        {"summary": msgspec.to_builtins(summary), "requests": msgspec.to_builtins(run.records)}
        for summary, run in zip(summaries, runs, strict=True)
    ]
    path.write_text(json.dumps({"loads": loads}, indent=1))


def _write_csv(path: Path, summaries: Sequence[Summary], _: Sequence[Run]) -> None:
    rows = [row(summary) for summary in summaries]
    names = list(dict.fromkeys(name for each in rows for name in each))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _write_png(path: Path, summaries: Sequence[Summary], _: Sequence[Run]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).flat
    places = range(len(summaries))
    for axis, name in zip(axes, ("ttft_ms", "tpot_ms", "e2e_ms"), strict=False):
        for percentile in ("p50", "p90", "p99"):
            values = [getattr(each, name).get(percentile, float("nan")) for each in summaries]
            axis.plot(places, values, marker="o", label=percentile)
        axis.set_ylabel(name.replace("_", " "))
        axis.set_ylim(bottom=0)
        axis.legend()
    last = figure.axes[3]
    last.plot(places, [each.output_tokens_per_s for each in summaries], marker="o")
    last.set_ylabel("output tokens/s")
    last.set_ylim(bottom=0)
    for axis in figure.axes:
        axis.set_xticks(list(places), [each.load for each in summaries], rotation=20)
    figure.savefig(path, dpi=120)


_WRITERS = {".json": _write_json, ".csv": _write_csv, ".png": _write_png}
