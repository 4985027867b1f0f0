"""Scores of a prompt's tokens are those of whole rows, however the vocabulary is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.runtime.prompt_scores import joined, logits_of, merge, score

SEEDS = st.integers(0, 2**32 - 1)


def whole_scores(logits, next_ids, num_best):
    return score(
        logits, next_ids, logits_of(logits, next_ids, first_id=0), num_best=num_best, first_id=0
    )


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(0, 6), st.lists(st.integers(1, 9), max_size=3))
def test_shares_together_say_what_whole_rows_say(seed, num_positions, num_best, widths):
    stops = np.cumsum([*widths, 8])
    random = np.random.default_rng(seed)
    # Few different values, so that there are equals.
    logits = random.integers(-4, 5, (num_positions, stops[-1])).astype(np.float32)
    next_ids = random.integers(0, stops[-1], num_positions).astype(np.int32)
    spans = list(zip([0, *stops[:-1]], stops, strict=True))
    held = [logits_of(logits[:, a:b], next_ids, first_id=a) for a, b in spans]
    next_logits = np.sum(held, axis=0, dtype=np.float32)
    found = merge([
        score(logits[:, a:b], next_ids, next_logits, num_best=num_best, first_id=a)
        for a, b in spans
    ])  # fmt: skip
    expected = whole_scores(logits, next_ids, num_best)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.logits.tolist() == expected.logits.tolist()
    assert found.ranks.tolist() == expected.ranks.tolist()
    np.testing.assert_allclose(found.log_totals, expected.log_totals, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(0, 5))
def test_a_token_is_as_likely_as_softmax_says_and_beside_the_best(seed, num_positions, num_best):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((num_positions, 40)).astype(np.float32) * 5
    next_ids = random.integers(0, 40, num_positions).astype(np.int32)
    scores = whole_scores(logits, next_ids, num_best)
    exponentials = np.exp(logits.astype(np.float64))
    logprobs = np.log(exponentials / exponentials.sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1)
    assert scores.ids.tolist() == np.hstack((next_ids[:, None], order[:, :num_best])).tolist()
    np.testing.assert_allclose(
        scores.logits - scores.log_totals[:, None],
        np.take_along_axis(logprobs, scores.ids, axis=1),
        atol=1e-5,
    )
    places = [row.tolist().index(token) for row, token in zip(order, next_ids, strict=True)]
    assert scores.ranks.tolist() == [place + 1 for place in places]


def test_a_share_with_too_few_tokens_leaves_the_places_to_others():
    small, large = np.zeros((1, 1), np.float32), np.array([[3.0, 1.0, 2.0]], np.float32)
    next_ids, next_logits = np.array([1], np.int32), np.array([3.0], np.float32)
    shares = [
        score(part, next_ids, next_logits, num_best=3, first_id=first)
        for part, first in ((small, 0), (large, 1))
    ]
    assert merge(shares).ids.tolist() == [[1, 1, 3, 2]]


def test_successive_positions_stand_one_after_the_other():
    logits, next_ids = np.eye(4, dtype=np.float32), np.array([0, 1, 3, 2], np.int32)
    parts = [whole_scores(logits[a:b], next_ids[a:b], 2) for a, b in ((0, 1), (1, 4))]
    whole = whole_scores(logits, next_ids, 2)
    assert joined(parts).ids.tolist() == whole.ids.tolist()
    assert joined(parts).ranks.tolist() == whole.ranks.tolist()
