import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="heavy: needs aiohttp")

from rufus_serve.bench.stream import Record
from rufus_serve.bench.summary import read_slo, spread, summarize
from rufus_serve.errors import ConfigError


def record(start, *arrivals, tokens=None, error=""):
    return Record(
        start_s=start, end_s=arrivals[-1] if arrivals else start + 1, arrivals_s=list(arrivals),
        input_tokens=10, output_tokens=len(arrivals) if tokens is None else tokens, error=error,
    )  # fmt: skip


def test_times_are_those_of_the_stream():
    found = summarize([record(1.0, 1.5, 1.6, 1.8)], load="x", slo={})
    assert found.ttft_ms["p50"] == pytest.approx(500)
    assert found.tpot_ms["p50"] == pytest.approx(150)
    assert found.itl_ms["mean"] == pytest.approx(150)
    assert found.e2e_ms["p99"] == pytest.approx(800)
    assert found.output_tokens_per_s == pytest.approx(3 / 0.8)


def test_tokens_of_one_piece_count_as_the_server_says():
    assert record(0, 1.0, 2.0, tokens=11).tpot_s == pytest.approx(0.1)


def test_failed_requests_are_counted_and_not_timed():
    records = [record(0, 1, 2), record(0, error="HTTP 503: no"), record(0, error="HTTP 503: no")]
    found = summarize(records, load="x", slo={})
    assert (found.requests, found.errors) == (1, {"HTTP 503: no": 2})
    assert found.ttft_ms["p99"] == pytest.approx(1000)


def test_goodput_counts_what_keeps_every_limit():
    records = [record(0, 0.1, 0.2), record(0, 0.1, 1.0), record(0, 0.9, 1.0)]
    found = summarize(records, load="x", slo={"ttft": 500, "tpot": 200})
    assert found.goodput_per_s == pytest.approx(1.0)
    assert summarize(records, load="x", slo={}).goodput_per_s is None


def test_nothing_answered_is_a_summary_too():
    found = summarize([record(0, error="refused")], load="x", slo={"ttft": 1})
    assert (found.requests, found.ttft_ms, found.goodput_per_s) == (0, {}, 0)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60))
def test_percentiles_are_numpys(seconds):
    found = spread(seconds)
    for percent in (50, 90, 99):
        wanted = 1e3 * np.percentile(seconds, percent)
        assert found[f"p{percent}"] == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_an_slo_names_a_measure_and_milliseconds():
    assert read_slo(["ttft:500", "tpot:50.5"]) == {"ttft": 500, "tpot": 50.5}
    for text in ("ttft", "speed:5", "ttft:fast", ""):
        with pytest.raises(ConfigError, match="an SLO is one of ttft, tpot, e2e"):
            read_slo([text])
