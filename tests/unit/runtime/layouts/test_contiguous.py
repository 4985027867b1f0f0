from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuron_sized import decode, prefill, shaped

from rufus_serve.errors import RuntimeStepError
from rufus_serve.runtime.layouts.buckets import strict_bucket
from rufus_serve.runtime.layouts.contiguous import ContiguousLayout

LAYOUT = ContiguousLayout(shaped("contiguous"))


def argument(call, name):
    return call.arguments[name].tolist()


def test_block_one_is_line_zero():
    (call,) = LAYOUT.prefill(prefill([5, 6, 7], [1]))
    assert argument(call, "seq_ids") == [0]
    assert argument(call, "input_ids") == [[5, 6, 7]]
    assert argument(call, "position_ids") == [[0, 1, 2]]
    assert call.rows == (0,)


def test_a_prompt_of_one_token_fills_its_bucket_at_position_0():
    (call,) = LAYOUT.prefill(prefill([5], [2]))
    assert argument(call, "input_ids") == [[5] + [0] * 15]
    assert argument(call, "position_ids") == [[0] * 16]
    assert argument(call, "attention_mask") == [[1]]


def test_logits_that_are_not_wanted_go_nowhere():
    (call,) = LAYOUT.prefill(prefill([5, 6], [1], want_logits=False))
    assert call.rows == ()


@given(st.permutations([0, 1, 2, 3]), st.integers(1, 4))
def test_decode_rows_are_in_line_order_and_come_back_in_the_leaders(lines, count):
    lines = lines[:count]
    step = decode([10 + line for line in lines], [3 + line for line in lines],
                  [[line + 1] for line in lines])  # fmt: skip
    (call,) = LAYOUT.decode(step)
    seq_ids = argument(call, "seq_ids")
    assert seq_ids == sorted(lines)
    assert argument(call, "input_ids") == [[10 + line] for line in seq_ids]
    assert argument(call, "position_ids") == [[3 + line] for line in seq_ids]
    assert [lines[row] for row in call.rows] == seq_ids


def test_rows_at_position_0_are_prefilled_on_their_own():
    calls = LAYOUT.decode(decode([5, 6, 7], [0, 9, 0], [[1], [4], [2]]))
    assert [argument(call, "seq_ids") for call in calls] == [[0], [1], [3]]
    assert [call.rows for call in calls] == [(0,), (2,), (1,)]
    assert argument(calls[-1], "position_ids") == [[9]]


def test_every_call_has_sampling_params_of_its_own_rows():
    calls = [*LAYOUT.decode(decode([5, 6], [0, 9], [[1], [4]])), *LAYOUT.warm_up()]
    for call in calls:
        assert call.arguments["sampling_params"].shape == (len(call.arguments["seq_ids"]), 3)
        assert call.arguments["sampling_params"].dtype == np.float32


def test_every_graph_is_warmed_up():
    widths = [call.arguments["input_ids"].shape for call in LAYOUT.warm_up()]
    assert widths == [(1, 15), (1, 63), (4, 1)]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (prefill([1, 2, 3], [1], computed=2), "2 tokens are computed already"),
        (prefill([1] * 65, [1, 2]), "context of 65 tokens exceeds max_model_len 64"),
        (prefill([1, 2], [0]), r"blocks \[0\] are not all KV lines"),
        (prefill([1, 2], [5]), r"blocks \[5\] are not all KV lines"),
    ],
)
def test_prefills_that_would_be_answered_wrongly_are_refused(step, reason):
    with pytest.raises(RuntimeStepError, match=reason):
        LAYOUT.prefill(step)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (decode([1, 2], [3, 4], [[1], [1]]), r"rows share KV lines: blocks \[1, 1\]"),
        (decode([1], [64], [[1, 2]]), "positions 64 to 64"),
        (decode([1] * 5, [3] * 5, [[1]] * 5), "5 rows"),
    ],
)
def test_decodes_that_would_be_answered_wrongly_are_refused(step, reason):
    with pytest.raises(RuntimeStepError, match=reason):
        LAYOUT.decode(step)


DRAFTED = ContiguousLayout(
    shaped("contiguous", speculation={"method": "ngram", "num_speculative_tokens": 3})
)


def test_a_sequence_with_its_drafts_is_one_row_of_the_call():
    step = decode([5, 6, 7, 8], [9, 20, 10, 21], [[4], [1], [4], [1]])
    (call,) = DRAFTED.decode(step)
    assert argument(call, "seq_ids") == [0, 3]
    assert argument(call, "input_ids") == [[6, 8, 0, 0], [5, 7, 0, 0]]
    assert argument(call, "position_ids") == [[20, 21, 22, 23], [9, 10, 11, 12]]
    assert call.rows == (1, 3, 0, 2)
    assert call.places.tolist() == [0, 1, 4, 5]


def test_drafts_are_not_among_what_is_seen_before_them():
    (call,) = DRAFTED.decode(decode([5, 6, 7], [3, 4, 1], [[1], [1], [2]]))
    assert argument(call, "attention_mask") == [[1, 1, 1], [1, 0, 0]]


def test_a_sequence_is_drawn_from_at_its_own_temperature():
    (call,) = DRAFTED.decode(decode([5, 6, 7], [3, 4, 1], [[2], [2], [1]]))
    told = call.tell_totals_at(np.array([0.5, 0.0, 2.0]))
    assert argument(call, "sampling_params") == [[1, 1, 2.0], [1, 1, 0.5]]
    assert (call.rows, told.tolist()) == ((2, 0, 1), [2.0, 0.5, 0.5])


def test_the_last_position_leaves_room_for_drafts_that_nobody_has():
    assert (DRAFTED.shape.seq_len, DRAFTED.shape.max_model_len) == (64, 61)
    (call,) = DRAFTED.decode(decode([5], [60], [[1]]))
    assert argument(call, "position_ids") == [[60, 61, 62, 63]]
    with pytest.raises(RuntimeStepError, match="within max_model_len 61"):
        DRAFTED.decode(decode([5], [61], [[1]]))


@pytest.mark.parametrize(
    ("positions", "lines"),
    [([3, 5], [1, 1]), ([3, 3], [1, 1]), ([3, 4, 5, 6, 7], [1] * 5)],
    ids=["gap", "twice", "too many"],
)
def test_drafts_that_do_not_follow_one_another_are_refused(positions, lines):
    with pytest.raises(RuntimeStepError, match=r"rows share KV lines.*holds 4 successive"):
        DRAFTED.decode(decode([5] * len(lines), positions, [[line] for line in lines]))


def test_the_graphs_of_drafts_are_warmed_up():
    widths = [call.arguments["input_ids"].shape for call in DRAFTED.warm_up()]
    assert widths == [(1, 15), (1, 63), (4, 4)]


@pytest.mark.parametrize("layout", [LAYOUT, DRAFTED], ids=["plain", "drafted"])
def test_the_smallest_graph_is_warmed_up_by_a_call_that_it_takes(layout):
    buckets = replace(layout.shape, context=(32, 64))
    longest = [
        int(call.arguments["position_ids"][:, 0].max())
        for call in ContiguousLayout(buckets).warm_up()
        if call.arguments["input_ids"].shape[0] == 4
    ]
    ahead = 0 if layout is LAYOUT else 4
    assert [strict_bucket(each + ahead, (32, 64)) for each in longest] == [32, 64]


FUSED = ContiguousLayout(
    shaped(
        "contiguous",
        speculation={"method": "fused", "draft_model": "d", "num_speculative_tokens": 3},
    )
)


def test_a_row_that_is_drafted_for_in_the_graph_comes_alone():
    (call,) = FUSED.decode(decode([5, 6], [9, 20], [[4], [1]]))
    assert argument(call, "input_ids") == [[6], [5]]
    assert argument(call, "position_ids") == [[20], [9]]
    assert "attention_mask" not in call.arguments
    assert (call.rows, call.places.tolist()) == ((1, 0), [0, 1])
    with pytest.raises(RuntimeStepError, match="a decode holds 1 successive"):
        FUSED.decode(decode([5, 6], [9, 10], [[4], [4]]))
    with pytest.raises(RuntimeStepError, match="within max_model_len 61"):
        FUSED.decode(decode([5], [61], [[1]]))
