"""Any mix of rows, checked by writing the steps into a cache and reading contexts back."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.leader.engine.step_builder import (
    IN_FULL,
    LogitsOf,
    PlannedStep,
    Row,
    StepBuilder,
    Want,
    block_table,
    row_wants,
)
from rufus_serve.protocol.messages import Phase


@dataclass(frozen=True)
class Batch:
    builder: StepBuilder
    rows: list[Row]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    block_size = draw(st.sampled_from([1, 4, 16]))
    builder = StepBuilder(
        block_size=block_size,
        largest_prefill=draw(st.integers(1, 40)),
        largest_decode_batch=draw(st.integers(3, 6)),
        batches_prefills=draw(st.booleans()),
    )
    rows, next_block = [], 1
    for index in range(draw(st.integers(0, 7))):
        computed, is_prefill = draw(st.integers(0, 60)), draw(st.booleans())
        new = draw(st.integers(1, 70)) if is_prefill else draw(st.integers(1, 3))
        num_blocks = -(-(computed + new) // block_size) + draw(st.integers(0, 2))
        tokens = np.arange(computed + new + 3, dtype=np.int32) + 1000 * (index + 1)
        blocks = list(range(next_block, next_block + num_blocks))
        next_block += num_blocks
        wants_logits = draw(st.booleans()) if is_prefill else True
        rows.append(Row(tokens, computed, new, blocks, is_prefill, wants_logits))
    return Batch(builder, rows)


def plan(batch: Batch) -> list[PlannedStep]:
    return batch.builder.build(batch.rows, epoch=3, first_step_id=10)


@settings(max_examples=40)
@given(batches())
def test_followers_find_every_context_in_their_cache(batch: Batch) -> None:
    size = batch.builder.block_size
    cache = np.full(10_000, -1, dtype=np.int64)
    for row in batch.rows:
        for position in range(row.num_computed):
            slot = row.block_ids[position // size] * size + position % size
            cache[slot] = row.token_ids[position]
    for step in plan(batch):
        request = step.request
        prefill = request.phase is Phase.PREFILL
        if prefill:
            texts = np.split(request.token_ids, np.cumsum(request.context_lens)[:-1])
            computed = request.num_computed_tokens
            new = [text[start:] for text, start in zip(texts, computed, strict=True)]
            cache[request.slot_mapping] = np.concatenate(new)
        else:
            cache[request.slot_mapping] = request.token_ids
        for row, (table, length) in enumerate(
            zip(request.block_table, request.context_lens, strict=True)
        ):
            positions = np.arange(length)
            context = cache[table[positions // size] * size + positions % size]
            first = context[0]
            assert (context == np.arange(first, first + length)).all()
            assert not prefill or (context == texts[row]).all()


@settings(max_examples=40)
@given(batches())
def test_a_prompts_last_token_and_all_tokens_of_a_decode_get_logits(batch: Batch) -> None:
    answered = [each for step in plan(batch) for each in step.rows]
    assert sorted(answered) == [
        LogitsOf(index, offset)
        for index, row in enumerate(batch.rows)
        if row.wants_logits
        for offset in range(1 if row.is_prefill else row.num_new)
    ]
    for step in plan(batch):
        assert len(step.rows) == (step.request.num_rows if step.request.want_logits else 0)
        for (index, offset), length in zip(step.rows, step.request.context_lens, strict=False):
            row = batch.rows[index]
            assert length == (row.end if row.is_prefill else row.num_computed + offset + 1)


@settings(max_examples=40)
@given(batches())
def test_a_rows_tokens_stay_together_and_in_order(batch: Batch) -> None:
    for step in plan(batch):
        if step.request.phase is Phase.DECODE:
            whole = [
                LogitsOf(index, offset)
                for index in step.members
                for offset in range(batch.rows[index].num_new)
            ]
            assert list(step.rows) == whole


@settings(max_examples=40)
@given(batches())
def test_no_step_is_larger_than_its_largest_bucket(batch: Batch) -> None:
    for step in plan(batch):
        if step.request.phase is Phase.PREFILL:
            assert step.request.num_rows == 1 or batch.builder.batches_prefills
            assert 1 <= step.request.num_new_tokens <= batch.builder.largest_prefill
        else:
            assert step.request.num_rows <= batch.builder.largest_decode_batch


@settings(max_examples=40)
@given(batches())
def test_step_ids_are_consecutive_and_decodes_come_first(batch: Batch) -> None:
    requests = [step.request for step in plan(batch)]
    assert [request.step_id for request in requests] == list(range(10, 10 + len(requests)))
    phases = [request.phase for request in requests]
    assert phases == sorted(phases, key=lambda phase: phase is Phase.PREFILL)
    assert all(request.epoch == 3 for request in requests)


def test_prefills_keep_the_order_of_the_rows() -> None:
    tokens = np.arange(20, dtype=np.int32)
    rows = [Row(tokens, 0, 9, [4, 5, 6], True), Row(tokens, 8, 3, [4, 5, 7], True)]
    steps = StepBuilder(4, 16, 8).build(rows, epoch=1, first_step_id=0)
    assert [step.members for step in steps] == [(0,), (1,)]


def test_what_rows_want_travels_with_the_step_that_answers_them() -> None:
    tokens = np.arange(20, dtype=np.int32)
    named = np.array([7, 9], np.int32)
    rows = [
        Row(tokens, 4, 1, [1, 2], False, want=Want(1)),
        Row(tokens, 0, 20, [1, 2, 3, 4, 5], True, want=Want(256, (0.8, 1.0), named)),
        Row(tokens, 4, 1, [1, 2], False, want=IN_FULL),
    ]
    decode, begin, end = (each.request for each in StepBuilder(4, 16, 8).build(
        rows, epoch=1, first_step_id=5
    ))  # fmt: skip
    assert decode.wants.num_candidates.tolist() == [1, -1]
    assert decode.wants.temperatures.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert begin.wants is None
    assert end.wants.temperatures.tolist() == [pytest.approx([0.8, 1.0])]
    assert (end.wants.num_token_ids.tolist(), end.wants.token_ids.tolist()) == ([2], [7, 9])
    assert [each.keep_since for each in (decode, begin, end)] == [5, 5, 5]


def test_a_step_whose_rows_are_all_wanted_in_full_says_nothing_of_them() -> None:
    assert row_wants([IN_FULL, IN_FULL]) is None


def test_steps_do_not_share_memory_with_the_batch() -> None:
    tokens = np.arange(8, dtype=np.int32)
    row = Row(tokens, 0, 8, [1, 2], True)
    (step,) = StepBuilder(4, 16, 8).build([row], epoch=1, first_step_id=0)
    tokens[:] = -1
    assert step.request.token_ids.tolist() == list(range(8))


def test_short_rows_are_padded_with_the_null_block() -> None:
    table = block_table([[7, 8, 9], [5]], np.array([9, 2]), 4)
    assert table.tolist() == [[7, 8, 9], [5, 0, 0]]


def test_a_row_set_apart_decodes_in_a_step_of_its_own() -> None:
    builder = StepBuilder(block_size=4, largest_prefill=8, largest_decode_batch=4)
    rows = [
        Row(np.arange(9, dtype=np.int32), 5, 1, [index, index + 1], False, alone=index in (1, 3))
        for index in range(5)
    ]
    steps = builder.build(rows, epoch=1, first_step_id=0)
    assert [step.members for step in steps] == [(0, 2, 4), (1,), (3,)]


def test_a_step_without_logits_names_its_row_as_well() -> None:
    builder = StepBuilder(block_size=4, largest_prefill=8, largest_decode_batch=4)
    row = Row(np.arange(12, dtype=np.int32), 0, 12, [1, 2, 3], True)
    steps = builder.build([row], epoch=1, first_step_id=0)
    assert [step.rows for step in steps] == [(), (LogitsOf(0),)]
    assert [step.members for step in steps] == [(0,), (0,)]


def test_drafts_are_rows_of_their_own_in_one_block_table() -> None:
    builder = StepBuilder(block_size=4, largest_prefill=8, largest_decode_batch=8)
    rows = [
        Row(np.arange(20, dtype=np.int32), 6, 3, [5, 6, 7], False, want=Want(1)),
        Row(np.arange(100, 120, dtype=np.int32), 2, 1, [9], False, want=Want(2)),
    ]
    (step,) = builder.build(rows, epoch=1, first_step_id=0)
    request = step.request
    assert step.rows == (LogitsOf(0, 0), LogitsOf(0, 1), LogitsOf(0, 2), LogitsOf(1, 0))
    assert request.token_ids.tolist() == [6, 7, 8, 102]
    assert request.num_computed_tokens.tolist() == [6, 7, 8, 2]
    assert request.context_lens.tolist() == [7, 8, 9, 3]
    assert request.block_table.tolist() == [[5, 6, 0], [5, 6, 0], [5, 6, 7], [9, 0, 0]]
    assert request.slot_mapping.tolist() == [26, 27, 28, 38]
    assert request.wants.num_candidates.tolist() == [1, 1, 1, 2]


def test_short_prompts_share_a_prefill_where_followers_can() -> None:
    def row(new: int, *, computed: int = 0, wants_logits: bool = True, alone: bool = False) -> Row:
        tokens = np.arange(computed + new, dtype=np.int32)
        return Row(tokens, computed, new, list(range(1, 9)), True, wants_logits, alone=alone)

    rows = [
        row(6), row(5), row(3), row(20), row(3, computed=4), row(9, wants_logits=False),
        row(2), row(2, alone=True), row(2),
    ]  # fmt: skip
    one_by_one = StepBuilder(block_size=4, largest_prefill=16, largest_decode_batch=4)
    together = StepBuilder(4, 16, 4, batches_prefills=True)
    assert [step.members for step in together.build(rows, epoch=1, first_step_id=0)] == [
        (0, 1, 2), (3,), (3, 4), (5,), (6,), (7,), (8,),
    ]  # fmt: skip
    assert all(len(s.members) == 1 for s in one_by_one.build(rows, epoch=1, first_step_id=0))
