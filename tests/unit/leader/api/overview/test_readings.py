import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rufus_serve.leader.api.overview.readings import Readings, Sample

INF = float("inf")


def sample(at: float, tokens: float, ttft: dict[float, float] | None = None) -> Sample:
    values = {
        ("generation_tokens", "0"): tokens,
        ("generation_tokens", "1"): tokens,
        ("prefix_cache_queries", "0"): tokens,
        ("prefix_cache_hits", "0"): tokens / 4,
    }
    return Sample(at, values, {"time_to_first_token_seconds": ttft or {}})


def test_a_rate_is_of_the_last_ten_seconds_and_all_engines() -> None:
    readings = Readings()
    for second in range(30):
        readings.take(sample(float(second), 0.0 if second < 15 else 100.0 * (second - 15)))
    assert readings.rate("generation_tokens") == pytest.approx(200.0)
    assert Readings().rate("generation_tokens") == 0.0


def test_percentiles_are_of_what_the_last_minute_added() -> None:
    readings = Readings()
    readings.take(sample(0.0, 0.0, {0.1: 1000.0, 0.2: 1000.0, INF: 1000.0}))
    readings.take(sample(1.0, 0.0, {0.1: 1000.0, 0.2: 1010.0, INF: 1010.0}))
    found = readings.spread("ttft")
    assert found is not None
    assert (found.p50, found.p90) == pytest.approx((150.0, 190.0))


def test_what_lies_beyond_the_last_bound_is_told_as_the_bound() -> None:
    readings = Readings()
    readings.take(sample(0.0, 0.0, {0.1: 0.0, INF: 7.0}))
    found = readings.spread("ttft")
    assert found is not None
    assert found.p50 == pytest.approx(100.0)


def test_nothing_measured_is_none() -> None:
    readings = Readings()
    assert readings.spread("ttft") is None
    readings.take(sample(0.0, 0.0, {0.1: 0.0, INF: 0.0}))
    assert readings.spread("ttft") is None
    assert readings.prefix_hit_rate("0") is None


def test_hits_are_a_share_of_what_was_looked_up() -> None:
    readings = Readings()
    readings.take(sample(0.0, 0.0))
    readings.take(sample(5.0, 400.0))
    assert readings.prefix_hit_rate("0") == pytest.approx(0.25)
    assert readings.prefix_hit_rate("1") is None


def test_old_samples_are_forgotten() -> None:
    readings = Readings()
    for second in range(500):
        readings.take(sample(float(second), 0.0))
    assert len(readings.samples) == 61


def test_a_sample_reads_vllms_metrics() -> None:
    registry = CollectorRegistry()
    counter = Counter("vllm:generation_tokens", "x", ["engine"], registry=registry)
    gauge = Gauge("vllm:kv_cache_usage_perc", "x", ["engine"], registry=registry)
    spread = Histogram(
        "vllm:time_to_first_token_seconds", "x", ["engine"], buckets=(1.0, 2.0), registry=registry
    )
    Counter("vllm:request_success", "not read", registry=registry)
    for engine in ("0", "1"):
        counter.labels(engine).inc(5)
        gauge.labels(engine).set(0.5)
        spread.labels(engine).observe(1.5)
    found = Sample.read(3.0, registry)
    assert found.values == {
        ("generation_tokens", "0"): 5, ("generation_tokens", "1"): 5,
        ("kv_cache_usage_perc", "0"): 0.5, ("kv_cache_usage_perc", "1"): 0.5,
    }  # fmt: skip
    assert found.buckets == {"time_to_first_token_seconds": {1.0: 0.0, 2.0: 2.0, INF: 2.0}}
