"""Candidates decide what rows in full decide, or leave it to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rows import (
    VOCAB,
    batch_by_candidates,
    bitmask_of,
    by_candidates,
    in_full,
    logits,
    sampling,
)

KINDS = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 40},
    "top_k and top_p": {"top_k": 300, "top_p": 0.8},
    "top_p": {"top_p": 0.9, "temperature": 0.8},
    "min_p": {"min_p": 0.05},
    "all filters": {"min_p": 0.01, "top_k": 50, "top_p": 0.95},
}
EDITS = {
    "none": {},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.3},
    "bias": {"logit_bias": dict.fromkeys(range(0, 100, 7), 6.0)},
    "forbidden": {"logit_bias": dict.fromkeys(range(50), -100.0)},
    "allowed": {"allowed_token_ids": list(range(0, 60, 3))},
    "bad words": {"bad_words_token_ids": [[token] for token in range(90)]},
    "min tokens": {"min_tokens": 50, "all_stop_token_ids": set(range(30))},
}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(EDITS)),
    st.sampled_from([None, 0, 5]),
    st.sampled_from([0, 1, 40, VOCAB // 2]),
    st.integers(0, 10**6),
    st.floats(0, 1, exclude_max=True),
)
def test_what_candidates_decide_a_row_in_full_decides_alike(
    kind, edit, logprobs, num_allowed, seed, uniform
):
    random = np.random.default_rng(seed)
    row = logits(seed, random.choice([1.0, 4.0, 9.0]))
    # Tokens that parameters touch are often the best ones.
    row[: random.integers(1, 100)] += random.choice([0.0, 8.0])
    mask = bitmask_of(random.permutation(VOCAB)[:num_allowed]) if num_allowed else None
    request = sampling(
        prompt=random.integers(0, 100, 20),
        outputs=random.integers(0, 100, 10).tolist(),
        logprobs=logprobs if mask is None else None,
        structured_outputs=None if mask is None else object(),
        **(KINDS[kind] | EDITS[edit]),
    )
    found, expected = (
        by_candidates(row, request, uniform, mask), in_full(row, request, uniform, mask),
    )  # fmt: skip
    if found is None:
        return
    assert found.token_id == expected.token_id
    if request.num_logprobs is not None:
        assert found.logprobs.ids.tolist() == expected.logprobs.ids.tolist()
        assert found.logprobs.rank == expected.logprobs.rank
        np.testing.assert_allclose(
            found.logprobs.logprobs, expected.logprobs.logprobs, atol=2e-5, rtol=1e-5
        )


_KIND_OF_ROW = st.tuples(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(sorted(EDITS)),
    st.sampled_from([None, 3]),
    st.sampled_from([0, 40, VOCAB // 2]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_KIND_OF_ROW, min_size=2, max_size=7), st.integers(0, 10**6), st.data())
def test_rows_are_drawn_together_as_each_alone_and_in_any_order(kinds, seed, data):
    random = np.random.default_rng(seed)
    rows = np.stack([logits(seed + place, random.choice([1, 4])) for place in range(len(kinds))])
    rows[:, : random.integers(1, 100)] += random.choice([0.0, 8.0])
    masks = [bitmask_of(random.permutation(VOCAB)[:n]) if n else None for *_, n in kinds]
    requests = [
        sampling(
            prompt=random.integers(0, 100, 20),
            outputs=random.integers(0, 100, 10).tolist(),
            logprobs=logprobs if mask is None else None,
            structured_outputs=None if mask is None else object(),
            **(KINDS[kind] | EDITS[edit]),
        )
        for (kind, edit, logprobs, _), mask in zip(kinds, masks, strict=True)
    ]
    uniforms = random.random(len(kinds))
    order = data.draw(st.permutations(range(len(kinds))))
    together = batch_by_candidates(rows, requests, uniforms, masks, order=order)
    for place, found in zip(order, together, strict=True):
        alone = by_candidates(rows[place], requests[place], uniforms[place], masks[place])
        assert (found is None) == (alone is None)
        if found is not None:
            assert found.token_id == alone.token_id
            assert (found.logprobs is None) == (alone.logprobs is None)
        if found is not None and found.logprobs is not None:
            assert found.logprobs.ids.tolist() == alone.logprobs.ids.tolist()
            assert found.logprobs.logprobs.tolist() == alone.logprobs.logprobs.tolist()
            assert found.logprobs.rank == alone.logprobs.rank


@pytest.mark.parametrize("edit", sorted(EDITS))
@pytest.mark.parametrize("kind", ["greedy", "top_k", "cold", "top_p"])
def test_candidates_decide_rows_as_models_give_them(kind, edit):
    request = sampling(prompt=range(20), outputs=range(10), **(KINDS[kind] | EDITS[edit]))
    for seed in range(20):
        assert by_candidates(logits(seed, 4.0), request, seed / 20) is not None


def test_a_grammar_is_decided_where_it_leaves_what_the_model_wants():
    row = logits(1, 4.0)
    mask = bitmask_of(np.argsort(-row)[1:50])
    for kind in ("greedy", "cold", "top_p"):
        request = sampling(structured_outputs=object(), **KINDS[kind])
        assert by_candidates(row, request, 0.5, mask) is not None


def test_a_grammar_that_leaves_none_of_the_candidates_is_not_decided():
    row = logits(1)
    request = sampling(structured_outputs=object(), temperature=0.0)
    mask = bitmask_of(np.argsort(row)[:10])
    assert by_candidates(row, request, 0.5, mask) is None
    assert in_full(row, request, 0.5, mask).token_id == np.argsort(row)[:10][-1]


def test_a_number_beyond_the_candidates_is_not_decided():
    row = np.zeros(VOCAB, np.float32)
    assert by_candidates(row, sampling(), 256.5 / VOCAB) is None
    assert by_candidates(row, sampling(), 255.5 / VOCAB).token_id == 255
    assert in_full(row, sampling(), 1999.5 / VOCAB).token_id == 1999


def test_equals_of_the_best_are_broken_by_their_ids_with_and_without_edits():
    row = np.zeros(VOCAB, np.float32)
    for edits in ({}, {"logit_bias": {700: 0.0}}, {"logit_bias": {0: -1.0}}):
        request = sampling(temperature=0.0, **edits)
        assert by_candidates(row, request).token_id == in_full(row, request).token_id


def test_a_grammar_that_allows_only_the_end_outdoes_min_tokens():
    request = sampling(
        temperature=0.0, min_tokens=5, all_stop_token_ids={9}, structured_outputs=object()
    )
    mask = bitmask_of([9])
    assert by_candidates(logits(), request, 0.5, mask) is None
    assert in_full(logits(), request, 0.5, mask).token_id == 9
