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
        most = self.shape.max_num_seqs * self.shape.inputs_per_row
        positions = check_decode(step, most, self.shape.max_model_len)
        lines = self._lines(step)
        order = np.lexsort((positions, lines))
        self._check_shared(step, lines[order], positions[order])
        calls = [
            self._prefill(step.token_ids[row : row + 1], int(lines[row]), (int(row),))
            for row in np.flatnonzero(positions == 0)
        ]
        rows = order[positions[order] > 0]
        if rows.size:
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
            last = np.full(count, max(bucket - 1 - self._ahead, 1))
            yield self._decode(np.zeros(count, np.int32), last, lines, None)

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

    def _decode(self, token_ids: Array, positions: Array, lines: Array, rows: Array | None) -> Call:
        """`lines` ascend: with a full batch NxD Inference takes row i for line i.

        Each row of the call has as many tokens as its graph; those beyond a sequence's own are
        written behind it and overwritten before anything sees them.
        """
        width = self.shape.inputs_per_row
        own, starts, counts = np.unique(lines, return_index=True, return_counts=True)
        places = np.arange(len(lines)) + np.repeat(np.arange(len(own)) * width - starts, counts)
        tokens = np.zeros(len(own) * width, dtype=np.int32)
        tokens[places] = token_ids
        first = np.asarray(positions, dtype=np.int32)[starts]
        longest = int(first.max())
        strict_bucket(longest + self._ahead, self.shape.context)
        arguments = {
            "input_ids": tokens.reshape(-1, width),
            "position_ids": column(first) + np.arange(width, dtype=np.int32),
            "seq_ids": np.asarray(own, dtype=np.int32),
            "sampling_params": sampling_params(len(own)),
        }
        if width > 1:
            # NxD Inference makes one from positions for a lone token or a prompt only.
            seen = np.arange(longest) < column(first)
            arguments["attention_mask"] = seen.astype(np.int32)
        if rows is None:
            return Call(arguments, ())
        taken = tuple(places.tolist()) if width > 1 else None
        return Call(arguments, tuple(rows.tolist()), taken)

    @property
    def _ahead(self) -> int:
        """Tokens by which NxD Inference takes a context for longer if a decode has drafts."""
        return self.shape.tokens_per_row if self.shape.tokens_per_row > 1 else 0

    def _check_shared(self, step: StepRequest, lines: Array, positions: Array) -> None:
        """Raise RuntimeStepError unless rows of one line are tokens that a decode can hold."""
        is_same = lines[1:] == lines[:-1]
        most = int(np.unique(lines, return_counts=True)[1].max())
        follows = positions[1:] == positions[:-1] + 1
        if most > self.shape.inputs_per_row or not follows[is_same].all():
            raise RuntimeStepError(
                f"step {step.step_id}: rows share KV lines: blocks {(lines + 1).tolist()}, "
                f"positions {positions.tolist()}; a decode holds {self.shape.inputs_per_row} "
                "successive tokens of each"
            )

    def _lines(self, step: StepRequest) -> Array:
        """[R] KV line of each row.

        Raises:
            RuntimeStepError: there is no such line; a graph would not notice.
        """
        lines = np.asarray(step.block_table, dtype=np.int32)[:, 0] - 1
        if lines.min() < 0 or lines.max() >= self.shape.max_num_seqs:
            raise RuntimeStepError(
                f"step {step.step_id}: blocks {(lines + 1).tolist()} are not all KV lines, which "
                f"are blocks 1 to {self.shape.max_num_seqs}"
            )
        return lines
