import pytest

from rufus_serve.config.step_floor import prefill_floor_s


@pytest.mark.parametrize(("tokens", "seconds"), [(1, 10.0), (512, 10.0), (8192, 160.0)])
def test_a_long_prefill_has_more_time(tokens, seconds):
    assert prefill_floor_s(10.0, tokens) == seconds
