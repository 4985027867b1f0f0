"""Steps are padded to their buckets, and malformed ones refused."""

import msgspec
import numpy as np
import pytest

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Phase, StepRequest
from rufus_serve.shard.buckets import Buckets
from rufus_serve.shard.step_inputs import pad_step

BUCKETS = Buckets(prefill=(4, 16), decode_batch=(1, 4), context=(12, 24))


def int32(*values):
    return np.array(values, np.int32)


PREFILL = StepRequest(
    step_id=7, epoch=1, phase=Phase.PREFILL, token_ids=int32(*range(10, 17)),
    num_computed_tokens=int32(4), context_lens=int32(7), block_table=int32(5, 3).reshape(1, 2),
    slot_mapping=int32(12, 13, 14),
)  # fmt: skip
DECODE = StepRequest(
    step_id=8, epoch=1, phase=Phase.DECODE, token_ids=int32(50, 51),
    num_computed_tokens=int32(3, 12),
    context_lens=int32(4, 13), block_table=int32(1, 0, 0, 0, 2, 4, 6, 8).reshape(2, 4),
    slot_mapping=int32(7, 32),
)  # fmt: skip


def pad(step):
    return pad_step(step, BUCKETS, block_size=4, num_blocks=9, vocab_size=100)


def test_a_prefill_takes_the_tokens_not_yet_computed():
    inputs = pad(PREFILL)
    assert inputs.is_prefill
    assert inputs.token_ids.tolist() == [14, 15, 16, 0]
    assert inputs.positions.tolist() == [4, 5, 6, 0]
    assert inputs.slots.tolist() == [12, 13, 14, 0]
    assert inputs.blocks.tolist() == [5, 3, 0]
    assert (inputs.num_rows, inputs.context_size) == (1, 12)
    assert inputs.last_tokens.tolist() == [2]


def test_prefills_of_a_step_lie_one_after_the_other():
    second = StepRequest(
        step_id=7, epoch=1, phase=Phase.PREFILL, token_ids=int32(*range(10, 17), 70, 71),
        num_computed_tokens=int32(4, 0), context_lens=int32(7, 2),
        block_table=int32(5, 3, 8, 0).reshape(2, 2), slot_mapping=int32(12, 13, 14, 32, 33),
    )  # fmt: skip
    inputs = pad(second)
    assert inputs.token_ids.tolist() == [14, 15, 16, 70, 71, *[0] * 11]
    assert inputs.positions.tolist() == [4, 5, 6, 0, 1, *[0] * 11]
    assert inputs.slots.tolist()[:5] == [12, 13, 14, 32, 33]
    assert inputs.blocks.tolist() == [5, 3, 0, 8, 0, 0]
    assert inputs.num_rows == 2
    assert inputs.last_tokens.tolist() == [2, 4]


def test_a_decode_has_a_row_for_each_sequence_and_pads_the_rest():
    inputs = pad(DECODE)
    assert inputs.token_ids.tolist() == [50, 51, 0, 0]
    assert inputs.positions.tolist() == [3, 12, 0, 0]
    assert inputs.slots.tolist() == [7, 32, 0, 0]
    assert inputs.context_size == 24
    assert inputs.blocks.view(4, 6).tolist() == [
        [1, 0, 0, 0, 0, 0], [2, 4, 6, 8, 0, 0], [0] * 6, [0] * 6,
    ]  # fmt: skip
    assert inputs.last_tokens.tolist() == [0, 1]


def test_a_table_wider_than_the_bucket_is_cut():
    wide = np.pad(PREFILL.block_table, ((0, 0), (0, 5)))
    assert pad(msgspec.structs.replace(PREFILL, block_table=wide)).blocks.tolist() == [5, 3, 0]


def test_a_context_is_rounded_up_to_whole_blocks():
    inputs = pad_step(PREFILL, BUCKETS, block_size=8, num_blocks=9, vocab_size=100)
    assert inputs.context_size == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": int32(1, 2)},
        {"slot_mapping": int32()},
        {"slot_mapping": int32(12, 13)},
        {"num_computed_tokens": int32(7)},
        {"context_lens": int32(7, 7)},
        {"block_table": int32(5).reshape(1, 1)},
    ],
    ids=str,
)
def test_arrays_that_contradict_each_other_are_refused(changes):
    with pytest.raises(RuntimeStepError, match="step 7 is malformed"):
        pad(msgspec.structs.replace(PREFILL, **changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"block_table": int32(5, 9).reshape(1, 2)}, "block outside of 0..8"),
        ({"block_table": int32(5, -1).reshape(1, 2)}, "block outside of 0..8"),
        ({"slot_mapping": int32(12, 13, 36)}, "block outside of 0..8"),
        ({"slot_mapping": int32(12, 13, -1)}, "block outside of 0..8"),
        ({"token_ids": int32(0, 0, 0, 0, 0, 0, 100)}, "token id outside of 0..99"),
    ],
)
def test_indices_outside_of_the_cache_or_vocabulary_are_refused(changes, what):
    with pytest.raises(RuntimeStepError, match=what):
        pad(msgspec.structs.replace(PREFILL, **changes))
