"""Every metric of ours at `/metrics`, declared once: name, kind, labels, unit, help.

The names are a contract: `docs/metrics.md` is made of this table, and dashboard and alerts are
checked against it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric."""

    name: str
    """Of a counter with `_total`, as it is asked for."""
    kind: Kind
    unit: str
    """What one is: seconds, bytes, or the thing counted."""
    labels: tuple[str, ...]
    help: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "rufus_step_seconds", "histogram", "seconds", ("group", "phase"),
            "From sending a step to having every follower's reply.",
        ),
        Metric(
            "rufus_step_part_seconds_total", "counter", "seconds", ("group", "part"),
            "Time the engine spent on parts of steps; `wait` is for the followers.",
        ),
        Metric(
            "rufus_step_sent_bytes_total", "counter", "bytes", ("group",),
            "Arrays of steps, as sent to each follower.",
        ),
        Metric(
            "rufus_step_received_bytes_total", "counter", "bytes", ("group",),
            "Arrays of replies, of all followers.",
        ),
        Metric(
            "rufus_bucket_used_total", "counter", "rows or tokens", ("group", "phase"),
            "Rows of decodes and new tokens of prefills that requests asked for.",
        ),
        Metric(
            "rufus_bucket_computed_total", "counter", "rows or tokens", ("group", "phase"),
            "The same with the padding up to the bucket.",
        ),
        Metric(
            "rufus_rows_in_full_total", "counter", "rows", ("group",),
            "Rows whose candidates did not decide the token, so that all logits were fetched.",
        ),
        Metric(
            "rufus_http_requests_total", "counter", "requests", ("route", "status", "key_id"),
            "Requests by how they were answered; refusals are those of 400 and above.",
        ),
        Metric(
            "rufus_open_sequences", "gauge", "sequences", (),
            "Sequences of requests that are running or waiting.",
        ),
    )
}  # fmt: skip
"""By name."""

Values = Mapping[tuple[str, ...], float]
"""By the labels' values, in their order."""


def family(name: str, values: Values) -> Family:
    """A counter or gauge with a sample for each of `values`."""
    metric = METRICS[name]
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    found = make(name.removesuffix("_total"), metric.help, labels=metric.labels)
    for labels, value in values.items():
        found.add_metric(labels, value)
    return found


def histogram(
    name: str,
    bounds: Sequence[float],
    samples: Iterable[tuple[tuple[str, ...], Sequence[int], float]],
) -> Family:
    """One of (labels, number in each bucket, sum); the last bucket is above all `bounds`."""
    metric = METRICS[name]
    found = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    edges = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    for labels, counts, total in samples:
        so_far, buckets = 0, []
        for edge, count in zip(edges, counts, strict=True):
            so_far += count
            buckets.append((edge, float(so_far)))
        found.add_metric(labels, buckets, total)
    return found
