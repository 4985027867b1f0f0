import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rufus_serve.runtime.candidates import best_ids, log_sum_exp

ROWS = hnp.arrays(
    np.float32,
    st.integers(1, 600),
    elements=st.one_of(st.integers(-8, 8).map(lambda value: value / 2), st.just(-np.inf)),
)


@given(ROWS, st.integers(0, 700))
def test_the_best_come_in_falling_order_and_equals_in_the_order_of_their_ids(row, count):
    assert best_ids(row, count).tolist() == np.argsort(-row, kind="stable")[:count].tolist()


def test_the_best_of_a_large_row_are_found():
    row = np.random.default_rng(0).standard_normal(128_256).astype(np.float32)
    assert best_ids(row, 256).tolist() == np.argsort(-row, kind="stable")[:256].tolist()


def test_what_is_no_number_comes_last():
    row = np.array([np.nan, 1.0, np.nan, 2.0], np.float32)
    assert best_ids(row, 3)[:2].tolist() == [3, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_the_total_is_that_of_the_scaled_row_and_does_not_overflow(temperature):
    row = np.array([1000.0, 999.0, -np.inf], np.float32)
    scaled = row.astype(float) / temperature
    assert log_sum_exp(row, temperature) == pytest.approx(np.logaddexp(*scaled[:2]), abs=1e-3)


def test_a_row_of_nothing_has_no_total():
    assert log_sum_exp(np.full(3, -np.inf, np.float32), 1.0) == -np.inf
