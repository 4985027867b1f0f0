import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuron_sized import decode, prefill, shaped

from rufus_serve.errors import RuntimeStepError
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
