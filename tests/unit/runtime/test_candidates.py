import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rufus_serve.protocol.messages import RowWants
from rufus_serve.runtime.candidates import (
    LAST_KEY,
    best_ids,
    counts_of_shares,
    falling_keys,
    log_sum_exp,
    merge,
    of_keys,
    pick,
    pick_by_numpy,
    pick_shares,
    whole_rows,
)

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


def wants(*rows: tuple[int, tuple[float, float], list[int]], shares=None) -> RowWants:
    """Of each row's K, temperatures and named tokens."""
    return RowWants(
        num_candidates=np.array([count for count, _, _ in rows], np.int32),
        temperatures=np.array([temperatures for _, temperatures, _ in rows], np.float32),
        num_token_ids=np.array([len(named) for _, _, named in rows], np.int32),
        token_ids=np.array([token for _, _, named in rows for token in named], np.int32),
        shares=None if shares is None else np.array(shares, np.float32),
    )


WAYS = pytest.mark.parametrize("pick", [pick, pick_by_numpy])
"""By a kernel, if there is one, and without."""


@WAYS
def test_each_row_brings_what_it_wants(pick):
    logits = np.array([[0, 3, 1, 2], [5, 4, 3, 2], [0, 0, 9, 9]], np.float32)
    found = pick(logits, wants((2, (0, 0), []), (-1, (0, 0), []), (1, (1, 2), [2])))
    assert found.ids.tolist() == [1, 3, 3]
    assert found.logits.tolist() == [3, 2, 9]
    assert found.token_logits.tolist() == [9]
    rest = np.array([0, 0, 9.0])
    assert found.log_totals[2].tolist() == pytest.approx(
        [np.logaddexp.reduce(rest), np.logaddexp.reduce(rest / 2)]
    )
    assert (found.log_totals[:2] == 0).all()
    assert logits[2].tolist() == [0, 0, 9, 9]


@WAYS
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_shares_of_the_vocabulary_give_what_the_whole_gives(pick, seed, count, sizes):
    random = np.random.default_rng(seed)
    vocab = sum(sizes)
    logits = random.integers(-3, 4, (2, vocab)).astype(np.float32)
    named = random.permutation(vocab)[: vocab // 3].tolist()
    asked = wants((count, (0.7, 1.0), named), (count // 2, (0.0, 1.0), []))
    starts = np.cumsum([0, *sizes[:-1]])
    shares = [
        pick(logits[:, start : start + size].copy(), asked, first_id=start)
        for start, size in zip(starts, sizes, strict=True)
    ]
    whole, merged = pick(logits, asked), merge(shares, asked, asked.num_candidates)
    finite = np.isfinite(whole.logits)
    assert merged.logits.tolist() == whole.logits.tolist()
    assert merged.ids[finite].tolist() == whole.ids[finite].tolist()
    assert merged.token_logits.tolist() == whole.token_logits.tolist()
    np.testing.assert_allclose(merged.log_totals, whole.log_totals, atol=1e-6)


def best_share(row, want, count):
    """How much of a row, without its named tokens, the best ones have."""
    _, (temperature, _), named = want
    weights = np.exp(np.delete(row, named).astype(float) / temperature)
    return np.sort(weights)[::-1][:count].sum() / weights.sum()


def test_more_candidates_come_where_k_hold_too_little_of_a_row():
    random = np.random.default_rng(0)
    logits = random.standard_normal((5, 20_000)).astype(np.float32)
    logits[1, 7] = 30.0
    rows = [(64, (0.5, 0.0), []), (64, (1.0, 0.0), []), (64, (1.0, 0.0), [3, 9]),
            (-1, (0.0, 0.0), []), (64, (9.0, 0.0), [])]  # fmt: skip
    asked = wants(*rows, shares=[0.3, 0.9, 0.4, 0.0, 0.9])
    found = pick_shares(logits, asked)
    # The last one's share never lies in as few as are sent.
    assert (found.counts == 64).tolist() == [False, True, False, False, True]
    for row in (0, 2):
        held = best_share(logits[row], rows[row], round(found.counts[row] / 1.25))
        assert held == pytest.approx(asked.shares[row], rel=0.01)
    stops = found.counts.cumsum()
    for row, (stop, count) in enumerate(zip(stops, found.counts, strict=True)):
        if count:
            best = logits[row].copy()
            best[rows[row][2]] = -np.inf
            expected = np.argsort(-best, kind="stable")[:count]
            assert found.ids[stop - count : stop].tolist() == expected.tolist()
            assert found.logits[stop - count : stop].tolist() == best[expected].tolist()
    k_alone = pick(logits, asked)
    assert (found.log_totals == k_alone.log_totals).all()
    assert found.token_logits.tolist() == k_alone.token_logits.tolist()


def test_as_many_come_as_wanted_where_these_hold_enough():
    logits = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float32) * 9
    asked = wants((64, (0.5, 0.0), []), (64, (0.5, 0.0), []), shares=[0.9, 0.5])
    found = pick_shares(logits, asked)
    assert found.counts is None
    assert found.ids.tolist() == pick(logits, asked).ids.tolist()


@pytest.mark.parametrize(("share", "has_more"), [(0.05, False), (0.2, True), (0.999, False)])
def test_merged_shares_tell_all_that_they_know_together_where_k_hold_too_little(share, has_more):
    logits = np.random.default_rng(0).standard_normal((1, 6000)).astype(np.float32)
    asked = wants((64, (1.0, 0.0), []), shares=[share])
    counts = np.array([64], np.int32)
    parts = [
        pick(logits[:, start : start + 1000].copy(), asked, first_id=start)
        for start in range(0, 6000, 1000)
    ]
    found = merge(parts, asked, counts)
    count = len(found.ids)
    assert (count > 64) is has_more
    assert (found.counts is not None) is has_more
    assert found.ids.tolist() == np.argsort(-logits[0], kind="stable")[:count].tolist()
    if has_more:
        held = np.exp(np.sort(logits[0].astype(float))[::-1]).cumsum()
        assert held[count - 2] < share * held[-1] <= held[count - 1] * 1.00001


def test_of_shares_of_the_vocabulary_more_is_asked_where_much_of_a_row_is_wanted():
    rows = [(64, (1.0, 0.0), []), (64, (1.0, 0.0), []), (2000, (1.0, 0.0), []), (-1, (0, 0), [])]
    asked = wants(*rows, shares=[0.5, 0.9, 0.9, 0.0])
    assert counts_of_shares(asked).tolist() == [64, 1024, 2000, 0]
    assert counts_of_shares(wants(*rows)).tolist() == [64, 64, 2000, 0]


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32)))
def test_keys_rise_as_logits_fall_and_with_ids_among_equals(logits):
    ids = np.arange(len(logits), dtype=np.int32)[::-1].copy()
    keys = falling_keys(logits, ids)
    assert (keys < LAST_KEY).all()
    ordered, their_ids = of_keys(np.sort(keys))
    values = np.where(np.isnan(logits), -np.inf, logits)
    order = np.lexsort((ids, -values))
    assert ordered.tolist() == values[order].tolist()
    assert their_ids.tolist() == ids[order].tolist()


def test_rows_in_full_are_those_without_candidates():
    assert whole_rows(None, 3).tolist() == [0, 1, 2]
    assert whole_rows(wants((1, (0, 0), []), (-1, (0, 0), [])), 2).tolist() == [1]
