import statistics
from itertools import islice, pairwise

import pytest

from rufus_serve.bench.arrivals import ClosedLoop, OpenLoop, Trace, rates
from rufus_serve.errors import ConfigError


def test_an_open_loop_has_the_rate_and_the_spread_of_a_poisson_process():
    starts = list(islice(OpenLoop(4.0, seed=1).starts(), 20_000))
    gaps = [later - sooner for sooner, later in pairwise(starts)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)


def test_bursts_keep_the_rate():
    starts = list(islice(OpenLoop(4.0, burst=5, seed=1).starts(), 20_000))
    assert len(set(starts)) == 4_000
    assert starts[-1] == pytest.approx(5_000, rel=0.05)


def test_the_same_seed_gives_the_same_moments():
    first, again = (list(islice(OpenLoop(3.0, seed=7).starts(), 50)) for _ in range(2))
    assert first == again != list(islice(OpenLoop(3.0, seed=8).starts(), 50))


def test_each_load_has_a_name():
    names = [ClosedLoop(8).name, OpenLoop(2.5).name, OpenLoop(2, burst=4).name, Trace((1, 2)).name]
    assert names == ["8 at once", "2.5/s", "2/s in bursts of 4", "trace of 2"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("1:8", (1, 2, 4, 8)), ("1:6", (1, 2, 4, 6)), ("3:3", (3,)), ("1,4,9", (1, 4, 9))],
)
def test_rates_double_or_are_listed(text, found):
    assert rates(text) == found


@pytest.mark.parametrize("text", ["", "0:4", "1:2:3", "fast", "-1", "1,0"])
def test_other_rates_are_refused(text):
    with pytest.raises(ConfigError, match="rates must be like"):
        rates(text)
