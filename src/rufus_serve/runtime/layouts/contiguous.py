"""The contiguous KV layout: one KV line per sequence.

The leader's block is a whole line: block id b is line b - 1, since block 0 is vLLM's null block.
Runs against real NxD Inference on CPU; on a device, written to the documented contract and
never run there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array, StepRequest
from rufus_serve.runtime.layouts.buckets import strict_bucket
from rufus_serve.runtime.layouts.calls import (
    Call,
    check_decode,
    check_prefill,
    column,
    sampling_params,
)
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape


@dataclass(frozen=True)
class ContiguousLayout:
    """Turns steps into calls in which every KV line is read and written as the leader means."""

    shape: CompiledShape

    def prefill(self, step: StepRequest) -> list[Call]:
        """One call for the whole prompt, from position 0."""
        computed, _ = check_prefill(step, self.shape.max_model_len)
        if computed:
            raise RuntimeStepError(
                f"step {step.step_id}: {computed} tokens are computed already, but the contiguous "
                "KV layout prefills from position 0; turn prefix caching and chunked prefill off"
            )
        line = int(self._lines(step)[0])
        rows = (0,) if step.want_logits else ()
        return [self._prefill(step.token_ids, line, rows)]

    def decode(self, step: StepRequest) -> list[Call]:
        """One call for all rows past position 0, after one for each row at it.

        A row at position 0 is a prompt of one token: in a batch, it would send the batch to the
        prefill graph.
        """
        positions = check_decode(step, self.shape.max_num_seqs, self.shape.max_model_len)
        lines = self._lines(step)
        calls = [
            self._prefill(step.token_ids[row : row + 1], int(lines[row]), (int(row),))
            for row in np.flatnonzero(positions == 0)
        ]
        running = np.flatnonzero(positions)
        if running.size:
            rows = running[np.argsort(lines[running])]
            calls.append(self._decode(step.token_ids[rows], positions[rows], lines[rows], rows))
        return calls

    def warm_up(self) -> Iterator[Call]:
        """One call for every compiled graph."""
        for bucket in self.shape.prefill:
            tokens = np.zeros(max(bucket - 1, 2), dtype=np.int32)
            yield self._prefill(tokens, 0, ())
        count = self.shape.max_num_seqs
        lines = np.arange(count, dtype=np.int32)
        for bucket in self.shape.context:
            yield self._decode(np.zeros(count), np.full(count, bucket - 1), lines, ())

    def _prefill(self, token_ids: Array, line: int, rows: tuple[int, ...]) -> Call:
        length = int(token_ids.shape[0])
        bucket = strict_bucket(length, self.shape.prefill)
        # The logits' row is the first of the largest position. NxD Inference pads positions with
        # 1, which would be larger than a lone token's 0; so that prompt comes padded, with 0.
        width = bucket if length == 1 else length
        tokens = np.zeros((1, width), dtype=np.int32)
        tokens[0, :length] = token_ids
        positions = np.arange(width, dtype=np.int32)
        positions[length:] = 0
        arguments = {
            "input_ids": tokens,
            "position_ids": positions.reshape(1, -1),
            "attention_mask": np.ones((1, length), dtype=np.int32),
            "seq_ids": np.array([line], dtype=np.int32),
            "sampling_params": sampling_params(1),
        }
        return Call(arguments, rows)

    def _decode(self, token_ids: Array, positions: Array, lines: Array, rows: object) -> Call:
        """`lines` ascend: with a full batch NxD Inference takes row i for line i."""
        strict_bucket(int(positions.max()), self.shape.context)
        arguments = {
            "input_ids": column(token_ids),
            "position_ids": column(positions),
            "seq_ids": np.asarray(lines, dtype=np.int32),
            "sampling_params": sampling_params(len(lines)),
        }
        return Call(arguments, tuple(int(row) for row in np.asarray(rows)))

    def _lines(self, step: StepRequest) -> Array:
        """[R] KV line of each row.

        Raises:
            RuntimeStepError: a row has no line of its own; a graph would not notice.
        """
        lines = np.asarray(step.block_table, dtype=np.int32)[:, 0] - 1
        if lines.min() < 0 or lines.max() >= self.shape.max_num_seqs:
            raise RuntimeStepError(
                f"step {step.step_id}: blocks {(lines + 1).tolist()} are not all KV lines, which "
                f"are blocks 1 to {self.shape.max_num_seqs}"
            )
        if np.unique(lines).size != lines.size:
            raise RuntimeStepError(
                f"step {step.step_id}: rows share KV lines: blocks {(lines + 1).tolist()}"
            )
        return lines
