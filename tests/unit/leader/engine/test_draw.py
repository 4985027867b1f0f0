import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.leader.engine.draw import (
    UNDECIDED,
    Filters,
    Ranked,
    choose,
    draw_from_row,
    draw_from_whole,
)
from rufus_serve.runtime.candidates import best_ids, log_sum_exp

VOCAB = 1000
KNOWN = 100


def normals(seed: int, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * spread).astype(np.float32)


def kept_by_sorting(logits: np.ndarray, k: int, p: float, m: float) -> tuple[np.ndarray, list[int]]:
    """Probabilities after min-p, top-k and top-p, in falling order, and their ids."""
    ids = np.argsort(-logits, kind="stable")
    probs = np.exp(logits[ids].astype(float) - logits.max())
    probs[probs < m] = 0.0
    if k:
        probs[probs < probs[k - 1]] = 0.0
    probs /= probs.sum()
    if p < 1.0:
        probs[1:][(np.cumsum(probs) - probs)[1:] >= p] = 0.0
    return probs / probs.sum(), ids.tolist()


def first_of(logits: np.ndarray, count: int) -> tuple[Ranked, np.ndarray]:
    ids = best_ids(logits, count)
    best = logits[ids][np.newaxis]
    floor = best[:, -1] if count < VOCAB else np.full(1, -np.inf, np.float32)
    return Ranked(best, floor, np.array([log_sum_exp(logits, 1.0)])), ids


ROWS = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    st.sampled_from([0, 1, 2, 50, KNOWN - 1, KNOWN, KNOWN + 1]),
    st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_what_the_first_tokens_decide_is_what_sorting_everything_draws(row):
    seed, spread, k, p, m, number = row
    logits = normals(seed, spread)
    ranked, ids = first_of(logits, KNOWN)
    (column,) = choose(ranked, Filters.of([(k, p, m)]), np.array([number]))
    probs, ordered = kept_by_sorting(logits, k, p, m)
    reach = np.cumsum(probs)
    expected = int((reach <= number).sum())
    if column == UNDECIDED:
        # A nucleus is of what the filters before it keep, so these must be known.
        before, _ = kept_by_sorting(logits, k, 1.0, m)
        reaches_beyond = (before[KNOWN - 1] > 0) and (k or m or p < 1.0)
        # Sums of float64 tell no numbers apart that close to 1.
        assert reaches_beyond or expected >= KNOWN or 1 - number < 1e-9
    elif abs(reach - number).min() > 1e-6:
        assert ids[column] == ordered[expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6))
def test_a_row_draws_the_same_alone_and_in_any_company(rows):
    logits = np.stack([normals(seed, spread) for seed, spread, *_ in rows])
    filters = Filters.of([(k, p, m) for _, _, k, p, m, _ in rows])
    numbers = np.array([row[-1] for row in rows])
    together = draw_from_whole(logits, filters, numbers)
    for place in range(len(rows)):
        here = np.array([place])
        alone = draw_from_whole(logits[here], filters[here], numbers[here])
        assert alone[0] == together[place]


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from([1, 7, 300, VOCAB]))
def test_a_draw_does_not_depend_on_how_many_tokens_are_looked_at_first(row, first):
    seed, spread, k, p, m, number = row
    logits, filters, numbers = (
        normals(seed, spread)[None],
        Filters.of([(k, p, m)]),
        np.array([number]),
    )
    expected = draw_from_whole(logits, filters, np.array(numbers))
    assert draw_from_whole(logits, filters, np.array(numbers), first=first) == expected


def test_ties_that_may_reach_beyond_the_known_tokens_are_not_decided():
    ranked, _ = first_of(np.zeros(VOCAB, np.float32), KNOWN)
    for k, p in ((5, 1.0), (0, 0.9)):
        assert choose(ranked, Filters.of([(k, p, 0.0)]), np.array([0.0])) == UNDECIDED


def test_a_row_that_allows_nothing_is_not_decided():
    ranked, _ = first_of(np.full(VOCAB, -np.inf, np.float32), KNOWN)
    assert choose(ranked, Filters.of([(0, 1.0, 0.0)]), np.array([0.5])) == UNDECIDED


@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2)])
def test_draws_follow_the_probabilities(filters):
    logits = np.log(np.array([0.05, 0.5, 0.2, 0.15, 0.1], np.float32))
    probs, ids = kept_by_sorting(logits, *filters)
    expected = np.zeros(5)
    expected[ids] = probs
    numbers = np.random.default_rng(0).random(20_000)
    drawn = draw_from_whole(
        np.tile(logits, (20_000, 1)), Filters.of([filters] * 20_000), numbers, first=2
    )
    counts = np.bincount(drawn, minlength=5)
    assert counts[expected == 0].sum() == 0
    drawable = expected > 0
    statistic = (counts - 20_000 * expected)[drawable] ** 2 / (20_000 * expected[drawable])
    # Chi-square of up to four degrees of freedom stays below this in 999 of 1,000 runs.
    assert statistic.sum() < 18.5


@pytest.mark.parametrize("filters", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2)])
def test_a_row_in_full_is_only_read_and_divided_by_its_temperature(filters):
    row = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    row.flags.writeable = False
    of_one, numbers = Filters.of([filters]), np.array([0.7])
    drawn = draw_from_row(row, of_one, numbers, temperature=0.5, first=8)
    assert [drawn] == draw_from_whole((row / np.float32(0.5))[np.newaxis], of_one, numbers).tolist()
