import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from neuron_sized import decode, prefill, shaped

from rufus_serve.errors import RuntimeStepError
from rufus_serve.runtime.layouts.block import BlockLayout

SIZE = 32
LAYOUT = BlockLayout(shaped("block"))


def tokens_and_blocks(length):
    return list(range(100, 100 + length)), list(range(3, 3 + -(-length // SIZE)))


@given(st.integers(2, 512), st.data())
def test_calls_write_each_new_token_once_and_no_cached_one(length, data):
    computed = data.draw(st.integers(0, length - 2))
    tokens, blocks = tokens_and_blocks(length)
    step = prefill(tokens, blocks, computed=computed, block_size=SIZE)
    calls = LAYOUT.prefill(step)
    written = np.concatenate([call.arguments["slot_mapping"][0] for call in calls])
    assert written[written >= 0].tolist() == step.slot_mapping.tolist()
    assert [call.rows for call in calls] == [()] * (len(calls) - 1) + [(0,)]


@given(st.integers(2, 512), st.data())
def test_calls_fill_both_buckets_and_end_at_the_token_of_the_largest_position(length, data):
    computed = data.draw(st.integers(0, length - 2))
    tokens, blocks = tokens_and_blocks(length)
    shape = LAYOUT.shape
    for call in LAYOUT.prefill(prefill(tokens, blocks, computed=computed, block_size=SIZE)):
        ids, positions = call.arguments["input_ids"][0], call.arguments["position_ids"][0]
        cached = int(call.arguments["computed_context_lens"][0, 0])
        width = int(call.arguments["full_context_lens"][0, 0])
        assert cached in (0, *shape.prefix)
        assert width - cached in shape.prefill
        assert ids.size == positions.size == width
        assert call.arguments["slot_mapping"].shape == (1, width - cached)
        last = int(np.argmax(positions))
        assert ids[: last + 1].tolist() == tokens[: last + 1]
        assert positions[: last + 1].tolist() == list(range(last + 1))
    assert last == length - 1


def test_one_new_token_is_a_decode():
    tokens, blocks = tokens_and_blocks(97)
    (call,) = LAYOUT.prefill(prefill(tokens, blocks, computed=96, block_size=SIZE))
    assert call.arguments["input_ids"].tolist() == [[196]]
    assert call.arguments["computed_context_lens"].tolist() == [[96]]
    assert call.arguments["slot_mapping"].tolist() == [[6 * SIZE]]
    (alone,) = LAYOUT.prefill(prefill([9], [4], block_size=SIZE))
    assert alone.arguments["position_ids"].tolist() == [[0]]


def test_decode_rows_keep_the_leaders_order_and_count_from_0():
    (call,) = LAYOUT.decode(decode([5, 6], [40, 3], [[9, 2], [7, 0]], block_size=SIZE))
    assert call.arguments["seq_ids"].tolist() == [0, 1]
    assert call.arguments["slot_mapping"].tolist() == [[2 * SIZE + 8], [7 * SIZE + 3]]
    assert call.arguments["full_context_lens"].tolist() == [[41], [4]]
    assert call.rows == (0, 1)
    assert call.arguments["sampling_params"].shape == (2, 3)


def test_warm_up_runs_each_graph_and_writes_no_block():
    calls = list(LAYOUT.warm_up())
    # Prefill buckets without a prefix, the larger one with each prefix, and the decodes.
    assert len(calls) == 2 + len(LAYOUT.shape.prefix) + len(LAYOUT.shape.context)
    assert all((call.arguments["slot_mapping"] == -1).all() for call in calls)


def test_warm_up_stays_within_the_longest_sequence():
    layout = BlockLayout(shaped("block", buckets={"prefill": [128, 512]}))
    for call in layout.warm_up():
        assert call.arguments["position_ids"].max() < layout.shape.seq_len


def test_blocks_that_do_not_exist_are_refused():
    with pytest.raises(RuntimeStepError, match=r"blocks up to 99 of"):
        LAYOUT.prefill(prefill([1, 2], [99], block_size=SIZE))


def test_a_table_too_short_for_its_context_is_refused():
    step = decode([5], [40], [[9, 2]], block_size=SIZE)
    short = replace(step, block_table=step.block_table[:, :1])
    with pytest.raises(RuntimeStepError, match="1 blocks of 32 tokens do not hold a context of 41"):
        LAYOUT.decode(short)


@pytest.mark.parametrize("slots", [[-1, -1], [99, 100], [4 * SIZE, 5 * SIZE]])
def test_slots_outside_of_the_block_table_are_refused(slots):
    step = replace(prefill([1, 2], [4], block_size=SIZE), slot_mapping=np.array(slots, np.int32))
    with pytest.raises(RuntimeStepError, match="step 7: the slots"):
        LAYOUT.prefill(step)
    step = decode([1, 2], [3, 4], [[4], [5]], block_size=SIZE)
    with pytest.raises(RuntimeStepError, match="step 8: the slots"):
        LAYOUT.decode(replace(step, slot_mapping=np.array(slots, np.int32)))
