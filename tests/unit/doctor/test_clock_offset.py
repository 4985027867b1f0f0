import pytest

from rufus_serve.doctor.links import round_trip_and_offset


def test_equal_clocks_and_equal_ways_have_no_offset():
    assert round_trip_and_offset(10.0, 10.1, 10.4, 10.5) == pytest.approx((0.2, 0.0))


@pytest.mark.parametrize("ahead", [-3.0, 7.5])
def test_the_other_clocks_lead_is_found_whatever_time_the_answer_took(ahead):
    found = round_trip_and_offset(10.0, 10.1 + ahead, 14.1 + ahead, 14.2)
    assert found == pytest.approx((0.2, ahead))


def test_a_slower_way_there_is_halved():
    assert round_trip_and_offset(10.0, 10.3, 10.3, 10.3) == pytest.approx((0.3, 0.15))
