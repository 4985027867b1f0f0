"""The block KV layout on the device: block tables, cached beginnings, a spare block.

The host side does what NxD Inference's does before a graph runs: it picks prefill and prefix
buckets, moves cached tokens into spare room of the prefill, and pads. Shape legend as in `graphs`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array
from rufus_serve.runtime.cpu.strict.graphs import (
    Arguments,
    Graph,
    GraphCall,
    by_row,
    padded_to,
    visible,
)
from rufus_serve.runtime.layouts.block import NOT_WRITTEN
from rufus_serve.runtime.layouts.buckets import SMALLEST_PREFIX_BUCKET
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.shard.step_inputs import StepInputs

_WHOLE_PROMPT = 512
"""Contexts above half of it, and up to it, take this prefill bucket if there is one."""


@dataclass(frozen=True)
class _Buckets:
    prefill: int
    prefix: int
    read: int
    """Cached tokens that stay in the prefix, the others being computed again."""


class BlockDevice:
    """Graphs and KV memory of one follower. The last block takes what is not to be written."""

    def __init__(self, shape: CompiledShape) -> None:
        self._shape = shape
        self.cell_size = shape.block_size
        self.num_cells = shape.num_blocks + 1

    def prepare(self, arguments: Arguments) -> GraphCall:
        """The call as it reaches its graph.

        Raises:
            RuntimeStepError: no graph takes it, or a device would answer it wrongly.
        """
        table = arguments["block_table"]
        if table.min() < 0 or table.max() >= self._shape.num_blocks:
            raise RuntimeStepError(
                f"block table with blocks {table.min()} to {table.max()} of 0 to "
                f"{self._shape.num_blocks - 1}; a graph would read elsewhere"
            )
        if arguments["input_ids"].shape[1] > 1 and arguments["position_ids"].min() == 0:
            return self._prefill(arguments)
        return self._decode(arguments)

    def inputs(self, call: GraphCall) -> StepInputs:
        """Where the call's tokens are written and what they see."""
        tensors, size = call.tensors, self.cell_size
        tokens, positions = tensors["input_ids"], tensors["position_ids"]
        slots, table = tensors["slot_mapping"], tensors["block_table"]
        if call.is_prefill:
            assert call.table is not None
            table = call.table
            width = int(tensors["computed_context_lens"][0, 0]) + slots.shape[1]
        else:
            width = tensors["attention_mask"].shape[1]
            index = positions // size
            # Recomputed from the table; the given slot counts by its sign only.
            recomputed = np.take_along_axis(table, index, axis=1) * size + positions % size
            slots = np.where(slots < 0, NOT_WRITTEN, recomputed)
        blocks = padded_to(table, -(-width // size), fill=0)
        last = int(call.rows[0])
        return StepInputs(
            is_prefill=call.is_prefill,
            num_rows=tokens.shape[0],
            token_ids=_int64(tokens),
            positions=_int64(positions),
            slots=_int64(np.where(slots < 0, self._shape.num_blocks * size, slots)),
            blocks=_int64(blocks),
            context_size=blocks.shape[1] * size,
            last_tokens=torch.tensor([last]) if call.is_prefill else torch.arange(tokens.shape[0]),
        )

    def _prefill(self, arguments: Arguments) -> GraphCall:
        tokens, positions = arguments["input_ids"], arguments["position_ids"]
        if tokens.shape[0] != 1:
            raise RuntimeStepError(f"{tokens.shape[0]} rows in a prefill: a graph holds one prompt")
        length = int(arguments["full_context_lens"][0, 0])
        computed = int(arguments["computed_context_lens"][0, 0])
        if length != tokens.shape[1]:
            raise RuntimeStepError(
                f"{tokens.shape[1]} token ids for a context of {length}: a prefill is given the "
                "whole prompt, cached tokens included"
            )
        chosen = self._choose(length - computed, computed)
        new, moved = chosen.prefill, computed - chosen.read
        positions = padded_to(positions[:, chosen.read :], new, fill=1)
        slots = np.pad(arguments["slot_mapping"], ((0, 0), (moved, 0)), constant_values=NOT_WRITTEN)
        table = arguments["block_table"]
        nothing = np.zeros(1, np.int32)
        tensors = {
            **arguments,
            "input_ids": padded_to(tokens[:, chosen.read :], new, fill=0),
            "position_ids": positions,
            "attention_mask": np.ones((1, chosen.prefix), np.int32) if chosen.prefix else nothing,
            "slot_mapping": padded_to(slots, new, fill=NOT_WRITTEN),
            "block_table": self._cut(table, chosen.prefix) if chosen.prefix else nothing,
            "computed_context_lens": np.array([[chosen.read]], np.int32),
        }
        graph = Graph(f"prefill {new} over {chosen.prefix}", self._shapes(1, new, chosen.prefix))
        graph.check(tensors)
        return GraphCall(graph, True, tensors, np.array([positions.argmax()]), table)

    def _choose(self, num_new: int, computed: int) -> _Buckets:
        """NxD Inference's choice of graph, refused where it would read past the prefix."""
        shape, total = self._shape, num_new + computed
        if _WHOLE_PROMPT in shape.prefill and _WHOLE_PROMPT // 2 < total <= _WHOLE_PROMPT:
            return _Buckets(_WHOLE_PROMPT, 0, 0)
        size = next((bucket for bucket in shape.prefill if num_new <= bucket), 0)
        if not size:
            raise RuntimeStepError(
                f"{num_new} new tokens exceed the largest prefill bucket {shape.prefill[-1]}"
            )
        read = max(0, computed - (size - num_new))
        prefix = next((bucket for bucket in (0, *shape.prefix) if read <= bucket), None)
        if prefix is None:
            raise RuntimeStepError(
                f"a prefix of {read} tokens exceeds the largest prefix bucket {shape.prefix[-1:]}"
            )
        if read != prefix:
            raise RuntimeStepError(
                f"a prefix of {read} tokens in a bucket of {prefix}: the bucket's unused end is "
                "not masked; read a prefix that fills its bucket"
            )
        if prefix and size < SMALLEST_PREFIX_BUCKET:
            raise RuntimeStepError(
                f"a prefill of {size} over a prefix of {prefix}: below {SMALLEST_PREFIX_BUCKET} "
                "new tokens it is taken for a decode"
            )
        return _Buckets(size, prefix, read)

    def _decode(self, arguments: Arguments) -> GraphCall:
        rows, new = arguments["input_ids"].shape
        count, positions = self._shape.max_num_seqs, arguments["position_ids"]
        if rows > count or new != 1:
            raise RuntimeStepError(
                f"{rows} rows of {new} tokens in a decode compiled for {count} rows of one"
            )
        last = int(positions.max())
        width = next((bucket for bucket in self._shape.context if last < bucket), 0)
        if not width:
            raise RuntimeStepError(
                f"position {last} exceeds the largest context bucket {self._shape.context[-1]}"
            )
        # Rows left out repeat the first one and are not written.
        source = np.concatenate([np.arange(rows), np.zeros(count - rows, np.int64)])
        tensors = {name: by_row(each, source, rows) for name, each in arguments.items()}
        written = np.arange(count)[:, None] < rows
        tensors |= {
            "seq_ids": np.arange(count, dtype=np.int32),
            "slot_mapping": np.where(written, tensors["slot_mapping"], NOT_WRITTEN),
            "attention_mask": visible(tensors["position_ids"], width),
            "block_table": self._cut(tensors["block_table"], width),
        }
        graph = Graph(f"decode {width}", self._shapes(count, 1, width))
        graph.check(tensors)
        return GraphCall(graph, False, tensors, np.arange(rows))

    def _cut(self, table: Array, num_tokens: int) -> Array:
        return padded_to(table, num_tokens // self.cell_size, fill=0)

    def _shapes(self, rows: int, new: int, context: int) -> dict[str, tuple[int, ...]]:
        read = context // self.cell_size
        return {
            "input_ids": (rows, new),
            "attention_mask": (rows, context) if context else (1,),
            "position_ids": (rows, new),
            "seq_ids": (rows,),
            "sampling_params": (rows, 3),
            "slot_mapping": (rows, new),
            "block_table": (rows, read) if context else (1,),
            "full_context_lens": (rows, 1),
            "computed_context_lens": (rows, 1),
        }


def _int64(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64).reshape(-1))
