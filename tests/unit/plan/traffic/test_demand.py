import random

import pytest
from tests.unit.plan.traffic.made import asked

from rufus_serve.errors import ConfigError
from rufus_serve.plan.traffic.demand import Lengths, Load, Trace, read_lengths


def load(**fields) -> Load:
    usual = {"rate": 4.0, "prompt": read_lengths("100"), "output": read_lengths("10"),
             "max_model_len": 500}  # fmt: skip
    return Load(**(usual | fields))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", Lengths("uniform", 512, 512)),
        ("128:2048", Lengths("uniform", 128, 2048)),
        ("400,1600", Lengths("lognormal", 400, 1600)),
        ("400,400", Lengths("uniform", 400, 400)),
    ],
)
def test_lengths_are_read(text, expected):
    assert read_lengths(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "many", "5:2", "5,2", "1:2:3", "1.5"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match="lengths must be like"):
        read_lengths(text)


def test_a_log_normal_has_its_median_and_percentile_and_mean():
    lengths, source = read_lengths("400,1600"), random.Random(1)
    drawn = sorted(lengths.draw(source, most=10**6) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(400, rel=0.03)
    assert drawn[19_800] == pytest.approx(1600, rel=0.06)
    assert sum(drawn) / len(drawn) == pytest.approx(lengths.mean, rel=0.03)


def test_made_up_requests_come_at_their_rate_and_fit():
    made = load(prompt=read_lengths("400,1600")).arrivals(share=0.5, count=4000)
    assert made[-1].at_s == pytest.approx(4000 / 2.0, rel=0.06)
    assert all(len(each.tokens) + each.num_output <= 500 for each in made)


def test_made_up_prompts_have_no_beginning_in_common():
    first, second = load().arrivals(share=1.0, count=2)
    assert not set(first.tokens) & set(second.tokens)


def test_another_share_asks_the_same_at_another_pace():
    whole, half = (load().arrivals(share=share, count=50) for share in (1.0, 0.5))
    assert [each.tokens for each in whole] == [each.tokens for each in half]
    assert half[-1].at_s == pytest.approx(2 * whole[-1].at_s)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "above 0 requests a second"),
        ({"rate": float("inf")}, "above 0 requests a second"),
        ({"max_model_len": 109}, "set --max-model-len 110"),
    ],
)
def test_an_impossible_load_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        load(**fields)


def test_a_trace_knows_its_rate_and_means():
    trace = Trace((asked(1.0, prompt=10, output=2), asked(2.0, prompt=30), asked(5.0, prompt=20)))
    assert trace.rate == pytest.approx(0.5)
    assert (trace.mean_prompt, trace.mean_output) == (20, pytest.approx(10 / 3))


def test_a_share_of_a_trace_is_spread_over_it():
    trace = Trace(tuple(asked(float(index)) for index in range(100)))
    quarter = trace.arrivals(share=0.25, count=0)
    assert [each.at_s for each in quarter] == list(range(3, 100, 4))
    assert trace.arrivals(share=1.0, count=0) == list(trace.requests)


def test_a_trace_of_one_moment_is_refused():
    with pytest.raises(ConfigError, match="at different moments"):
        Trace((asked(1.0), asked(1.0)))
