"""Every metric of ours at `/metrics`, declared once: name, kind, labels, unit, help.

The names are a contract: `docs/metrics.md` is made of this table, and dashboard and alerts are
checked against it.
"""

import sys
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
            "rufus_group_state", "gauge", "0 or 1", ("group", "state"),
            "1 for the state the group is in.",
        ),
        Metric(
            "rufus_group_epoch", "gauge", "epochs", ("group",),
            "Epochs formed so far.",
        ),
        Metric(
            "rufus_group_start_seconds", "gauge", "seconds", ("group",),
            "From the start until the group's first epoch was ready; 0 before that.",
        ),
        Metric(
            "rufus_recovery_seconds", "histogram", "seconds", ("group",),
            "From a loss until every follower awaits steps again.",
        ),
        Metric(
            "rufus_follower_restarts_total", "counter", "followers", ("group",),
            "Followers replaced after a loss.",
        ),
        Metric(
            "rufus_follower_step_seconds", "gauge", "seconds", ("group", "node_rank", "host"),
            "Mean time per step that a follower computes, without waiting for its peers.",
        ),
        Metric(
            "rufus_follower_skew_seconds", "gauge", "seconds", ("group",),
            "Step time of the slowest follower less that of the fastest.",
        ),
        Metric(
            "rufus_follower_heartbeat_age_seconds", "gauge", "seconds",
            ("group", "node_rank", "host"),
            "Since the follower's interpreter last said something.",
        ),
        Metric(
            "rufus_follower_weight_loads", "gauge", "loads", ("group", "node_rank", "host"),
            "How often the follower's process has loaded weights.",
        ),
        Metric(
            "rufus_follower_load_seconds", "gauge", "seconds", ("group", "node_rank", "host"),
            "What its last load of weights took, compiling included where nothing was compiled.",
        ),
        Metric(
            "rufus_follower_compile_seconds", "gauge", "seconds", ("group", "node_rank", "host"),
            "Of that, compiling what was not made ahead of time; 0 where artifacts are used.",
        ),
        Metric(
            "rufus_follower_warm_up_seconds", "gauge", "seconds", ("group", "node_rank", "host"),
            "What running every bucket once took when its group last did.",
        ),
        Metric(
            "rufus_follower_stale_steps_total", "counter", "steps", ("group", "node_rank", "host"),
            "Steps that reached the follower's process too late, of a past epoch or leader.",
        ),
        Metric(
            "rufus_follower_artifact_files", "gauge", "files",
            ("group", "node_rank", "host", "how"),
            "Artifacts that it loaded: `kept` lay in its cache, `fetched` did not.",
        ),
        Metric(
            "rufus_follower_artifact_bytes", "gauge", "bytes",
            ("group", "node_rank", "host", "how"),
            "Bytes of the same.",
        ),
        Metric(
            "rufus_cluster_up", "gauge", "0 or 1", (),
            "1 while Ray is there, so that followers can be started; those that run need it not.",
        ),
        Metric(
            "rufus_cluster_restarts_total", "counter", "starts", (),
            "Times Ray was started again.",
        ),
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
            "rufus_stale_replies_total", "counter", "replies", ("group",),
            "Followers' answers that came too late, of a past epoch or of a step already answered.",
        ),
        Metric(
            "rufus_move_seconds", "histogram", "seconds", ("group",),
            "From a request's leaving the group until another one brought its next token.",
        ),
        Metric(
            "rufus_http_requests_total", "counter", "requests", ("route", "status", "key_id"),
            "Requests by how they were answered.",
        ),
        Metric(
            "rufus_refusals_total", "counter", "requests", ("reason", "key_id"),
            "Those of 400 and above by reason: full, draining, loading, key_share, key_sequences, "
            "key_requests and key_tokens (of a minute), else the status in words.",
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


def reference() -> str:
    """The table as `docs/metrics.md`; `make docs` writes it."""
    lines = [
        "# Metrics",
        "",
        "Generated by `make docs`. `/metrics` has these beside vLLM's own, whose names begin with",
        "`vllm:`. It answers from the first second; vLLM's are there once vLLM is loaded. It needs",
        "a key with scope `metrics`, if keys are used.",
        "",
        "| name | kind | unit | labels | what |",
        "|---|---|---|---|---|",
    ]
    for metric in METRICS.values():
        labels = ", ".join(metric.labels)
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
