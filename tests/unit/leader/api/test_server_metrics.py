from prometheus_client import CollectorRegistry, generate_latest

from rufus_serve.config.keys import ANONYMOUS
from rufus_serve.leader.api.call import Call
from rufus_serve.leader.api.server_metrics import ServerMetrics
from rufus_serve.leader.step_counts import STEP_BOUNDS_S, Durations, Filled, StepCounts
from rufus_serve.metrics import METRICS


def exposed(metrics: ServerMetrics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode().splitlines()


def test_every_declared_metric_is_there_before_anything_happened() -> None:
    lines = exposed(ServerMetrics(lambda: 3))
    typed = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert typed == {metric.name: metric.kind for metric in METRICS.values()}
    assert "rufus_open_sequences 3.0" in lines


def test_what_engines_counted_is_told_by_group() -> None:
    metrics, steps = ServerMetrics(lambda: 0), Durations()
    for seconds in (0.004, 0.004, 0.3, 60.0):
        steps.add(seconds)
    counts = StepCounts(
        steps={"decode": steps}, filled={"decode": Filled(3, 4)}, parts_s={"wait": 1.5},
        sent_bytes=10, received_bytes=20, rows_in_full=2, stale_replies=5,
    )  # fmt: skip
    metrics.took_counts(1, counts)
    lines = exposed(metrics)
    for line in (
        'rufus_step_seconds_bucket{group="1",le="0.002",phase="decode"} 0.0',
        'rufus_step_seconds_bucket{group="1",le="0.005",phase="decode"} 2.0',
        'rufus_step_seconds_bucket{group="1",le="0.5",phase="decode"} 3.0',
        'rufus_step_seconds_bucket{group="1",le="+Inf",phase="decode"} 4.0',
        'rufus_step_seconds_count{group="1",phase="decode"} 4.0',
        'rufus_step_part_seconds_total{group="1",part="wait"} 1.5',
        'rufus_bucket_used_total{group="1",phase="decode"} 3.0',
        'rufus_bucket_computed_total{group="1",phase="decode"} 4.0',
        'rufus_step_sent_bytes_total{group="1"} 10.0',
        'rufus_step_received_bytes_total{group="1"} 20.0',
        'rufus_rows_in_full_total{group="1"} 2.0',
        'rufus_stale_replies_total{group="1"} 5.0',
    ):
        assert line in lines
    assert len(steps.buckets) == len(STEP_BOUNDS_S) + 1


def test_waits_of_requests_that_left_a_group_are_told() -> None:
    metrics, waits = ServerMetrics(lambda: 0), Durations()
    waits.add(0.4)
    metrics.moves = {1: waits}
    lines = exposed(metrics)
    assert 'rufus_move_seconds_bucket{group="1",le="0.2"} 0.0' in lines
    assert 'rufus_move_seconds_bucket{group="1",le="0.5"} 1.0' in lines
    assert 'rufus_move_seconds_sum{group="1"} 0.4' in lines


def test_requests_are_told_by_route_status_and_key_without_their_ids() -> None:
    metrics = ServerMetrics(lambda: 0)
    answered = [
        ("/tokenize", 429), ("/v1/batches/batch_7", 200), ("/v1/batches/batch_8", 200),
        ("/nothing/of/ours", 404), ("/v1/completions", 0),
    ]  # fmt: skip
    for path, status in answered:
        metrics.answered(Call("id", path=path, status=status, key=ANONYMOUS))
    found = [line for line in exposed(metrics) if line.startswith("rufus_http_requests_total{")]
    assert sorted(found) == [
        'rufus_http_requests_total{key_id="anonymous",route="/tokenize",status="429"} 1.0',
        'rufus_http_requests_total{key_id="anonymous",route="/v1/batches/{id}",status="200"} 2.0',
        'rufus_http_requests_total{key_id="anonymous",route="/v1/completions",status="499"} 1.0',
        'rufus_http_requests_total{key_id="anonymous",route="other",status="404"} 1.0',
    ]


def test_refusals_are_told_by_reason_or_else_by_their_status_in_words() -> None:
    metrics = ServerMetrics(lambda: 0)
    for status, refusal in (
        (429, "full"),
        (429, "key_tokens"),
        (429, "full"),
        (404, ""),
        (200, ""),
    ):
        call = Call("id", path="/tokenize", status=status, key=ANONYMOUS)
        call.refusal = refusal
        metrics.answered(call)
    found = [line for line in exposed(metrics) if line.startswith("rufus_refusals_total{")]
    assert sorted(found) == [
        'rufus_refusals_total{key_id="anonymous",reason="full"} 2.0',
        'rufus_refusals_total{key_id="anonymous",reason="key_tokens"} 1.0',
        'rufus_refusals_total{key_id="anonymous",reason="not_found"} 1.0',
    ]
