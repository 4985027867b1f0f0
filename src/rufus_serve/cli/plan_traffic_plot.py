"""The picture of `plan --traffic`: latencies of the shape to take, by number of groups."""

from pathlib import Path
from typing import Any

from rufus_serve.cli.plan_traffic_report import Report
from rufus_serve.errors import ConfigError


def draw(path: Path, report: Report) -> None:
    """Write the PNG.

    Raises:
        ConfigError: the disk refuses.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(f"{report.demand.rate:,.2f} requests/s, groups of {report.best.shape.name}")
    limits = (report.slo.ttft_ms, report.slo.tpot_ms)
    for axis, name, limit in zip(figure.subplots(1, 2), ("ttft", "tpot"), limits, strict=True):
        _curves(axis, report, name)
        if limit:
            axis.axhline(limit, color="black", linestyle="--", label="limit of p99")
        axis.axvline(report.best.num_groups, color="grey", linestyle=":", label="to take")
        axis.set_xlabel("groups")
        axis.set_ylabel(f"{name.upper()} ms")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _curves(axis: Any, report: Report, name: str) -> None:
    groups = [each.num_groups for each in report.curve]
    for percentile in ("p50", "p99"):
        found = [getattr(each.measures, f"{name}_ms") for each in report.curve]
        values = [each.get(percentile, float("nan")) for each in found]
        axis.plot(groups, values, marker="o", label=percentile)
