"""The block KV layout: vLLM's block tables, with prefix caching.

Runs against real NxD Inference on CPU; on a device, written to the documented contract and
never run there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array, StepRequest
from rufus_serve.runtime.layouts.buckets import SMALLEST_PREFIX_BUCKET, Segment, plan_prefill
from rufus_serve.runtime.layouts.calls import (
    Call,
    check_decode,
    check_prefill,
    column,
    sampling_params,
)
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape

NOT_WRITTEN = -1
"""Slot of a token whose keys and values go to the spare block."""


@dataclass(frozen=True)
class BlockLayout:
    """Turns steps into calls whose prefixes fill their buckets."""

    shape: CompiledShape

    def prefill(self, step: StepRequest) -> list[Call]:
        """As many calls as the buckets ask for; the last one has the logits."""
        computed, length = check_prefill(step, self.shape.max_model_len)
        table = self._tables(step)
        self._check_slots(step, np.zeros(length - computed, np.int32), np.arange(computed, length))
        rows = (0,) if step.want_logits else ()
        if length - computed == 1:
            last = np.array([length - 1], dtype=np.int32)
            return [self._decode(step.token_ids[-1:], last, table, step.slot_mapping, rows)]
        segments = plan_prefill(
            computed, length, prefill=self.shape.prefill, prefix=self.shape.prefix
        )
        slots = np.full(length, NOT_WRITTEN, dtype=np.int32)
        slots[computed:] = step.slot_mapping
        return [
            self._segment(segment, step.token_ids, table, slots, rows if last else ())
            for segment, last in _mark_last(segments)
        ]

    def decode(self, step: StepRequest) -> list[Call]:
        """One call for all rows, in the leader's order."""
        positions = check_decode(step, self.shape.max_num_seqs, self.shape.max_model_len)
        rows = tuple(range(step.num_rows))
        tables = self._tables(step)
        self._check_slots(step, np.arange(step.num_rows), positions)
        return [self._decode(step.token_ids, positions, tables, step.slot_mapping, rows)]

    def warm_up(self) -> Iterator[Call]:
        """One call for every compiled graph; nothing is written outside the null block."""
        table = np.zeros((1, 1), dtype=np.int32)
        for size in self.shape.prefill:
            for prefix in (0, *self.shape.prefix):
                if prefix == 0 or size >= SMALLEST_PREFIX_BUCKET:
                    end = min(prefix + size, self.shape.seq_len)
                    nothing = np.full(end, NOT_WRITTEN, dtype=np.int32)
                    segment = Segment(prefix, size, end, end)
                    yield self._segment(segment, np.zeros(end), table, nothing, ())
        count = self.shape.max_num_seqs
        tables = np.zeros((count, 1), dtype=np.int32)
        for bucket in self.shape.context:
            slots = np.full(count, NOT_WRITTEN)
            yield self._decode(np.zeros(count), np.full(count, bucket - 1), tables, slots, ())

    def _segment(
        self, segment: Segment, token_ids: Array, table: Array, slots: Array, rows: tuple[int, ...]
    ) -> Call:
        """The call that fills the segment's prefill bucket, so that none of the prefix moves in.

        Pads have position 0 and no slot; the logits' row is the first of the largest position.
        """
        width = segment.prefix + segment.size
        end = segment.end
        tokens, positions = np.zeros((2, 1, width), dtype=np.int32)
        tokens[0, :end] = token_ids[:end]
        positions[0, :end] = np.arange(end)
        written = np.full((1, segment.size), NOT_WRITTEN, dtype=np.int32)
        new = slice(segment.computed - segment.prefix, end - segment.prefix)
        written[0, new] = slots[segment.computed : end]
        arguments = {
            "input_ids": tokens,
            "position_ids": positions,
            "seq_ids": np.zeros(1, dtype=np.int32),
            "sampling_params": sampling_params(1),
            "slot_mapping": written,
            "block_table": table,
            "full_context_lens": column(np.array([width])),
            "computed_context_lens": column(np.array([segment.prefix])),
        }
        return Call(arguments, rows)

    def _decode(
        self, token_ids: Array, positions: Array, tables: Array, slots: Array, rows: tuple[int, ...]
    ) -> Call:
        # On a device rows are told apart by block tables alone; CPU mode wants seq_ids 0..R-1.
        arguments = {
            "input_ids": column(token_ids),
            "position_ids": column(positions),
            "seq_ids": np.arange(len(positions), dtype=np.int32),
            "sampling_params": sampling_params(len(positions)),
            "slot_mapping": column(slots),
            "block_table": tables,
            "full_context_lens": column(positions + 1),
            "computed_context_lens": column(positions),
        }
        return Call(arguments, rows)

    def _tables(self, step: StepRequest) -> Array:
        """[R, W] the step's block tables.

        Raises:
            RuntimeStepError: a block does not exist, or a row lacks blocks for its context.
        """
        tables = np.array(step.block_table, dtype=np.int32)
        if tables.min(initial=0) < 0 or tables.max(initial=0) >= self.shape.num_blocks:
            raise RuntimeStepError(
                f"step {step.step_id}: blocks up to {tables.max()} of {self.shape.num_blocks}"
            )
        longest = int(np.max(step.context_lens))
        if tables.shape[1] * self.shape.block_size < longest:
            raise RuntimeStepError(
                f"step {step.step_id}: {tables.shape[1]} blocks of {self.shape.block_size} tokens "
                f"do not hold a context of {longest}"
            )
        return tables

    def _check_slots(self, step: StepRequest, rows: Array, positions: Array) -> None:
        """Raise RuntimeStepError unless each new token's slot is the one its table says.

        A decode writes where the table says whatever the slot, a prefill where the slot says.
        """
        size = self.shape.block_size
        wanted = step.block_table[rows, positions // size] * size + positions % size
        if not np.array_equal(wanted, step.slot_mapping):
            raise RuntimeStepError(
                f"step {step.step_id}: the slots of its new tokens are not in its block table"
            )


def _mark_last(segments: list[Segment]) -> Iterator[tuple[Segment, bool]]:
    return ((segment, index == len(segments) - 1) for index, segment in enumerate(segments))
