"""The contiguous KV layout on the device: a KV line per sequence.

The host side does what NxD Inference's does before a graph runs: it picks the graph, fills up the
rows and pads. Shape legend as in `graphs`, L tokens of a line.
"""

import math

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
from rufus_serve.runtime.layouts.buckets import strict_bucket
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.shard.step_inputs import StepInputs


class ContiguousDevice:
    """Graphs and KV memory of one follower.

    Memory is cut into cells, so that a graph reads no more of a line than its bucket. One more
    cell takes what is written nowhere: that of rows that a decode leaves out.
    """

    def __init__(self, shape: CompiledShape) -> None:
        self._shape = shape
        self.cell_size = math.gcd(shape.seq_len, *shape.context)
        self._cells_per_line = shape.seq_len // self.cell_size
        self.num_cells = shape.max_num_seqs * self._cells_per_line + 1

    def prepare(self, arguments: Arguments) -> GraphCall:
        """The call as it reaches its graph.

        Raises:
            RuntimeStepError: no graph takes it, or a device would answer it wrongly.
        """
        # There is no flag: the smallest position of the whole batch decides.
        if arguments["position_ids"].min() == 0:
            return self._prefill(arguments)
        return self._decode(arguments)

    def inputs(self, call: GraphCall) -> StepInputs:
        """Where the call's tokens are written and what they see."""
        tensors, size = call.tensors, self._shape.seq_len
        positions = tensors["position_ids"].reshape(-1)
        lines = tensors["seq_ids"]
        if call.is_prefill:
            width = positions.size
            slots = lines[0] * size + np.arange(width)
        else:
            # A sequence's tokens are rows of their own on the CPU, that see those before them.
            lines = np.repeat(lines, self._shape.tokens_per_row)
            width = tensors["attention_mask"].shape[1]
            sink = (self.num_cells - 1) * self.cell_size
            slots = np.where(lines < 0, sink, lines * size + positions)
        num_cells = -(-width // self.cell_size)
        first = np.maximum(lines, 0) * self._cells_per_line
        cells = first[:, None] + np.arange(num_cells)
        last = int(call.rows[0])
        return StepInputs(
            is_prefill=call.is_prefill,
            num_rows=lines.size,
            token_ids=_int64(tensors["input_ids"]),
            positions=_int64(positions),
            slots=_int64(slots),
            blocks=_int64(cells),
            context_size=num_cells * self.cell_size,
            last_tokens=torch.tensor([last]) if call.is_prefill else torch.arange(lines.size),
        )

    def _prefill(self, arguments: Arguments) -> GraphCall:
        tokens, positions = arguments["input_ids"], arguments["position_ids"]
        rows, count = tokens.shape
        if rows != 1:
            raise RuntimeStepError(
                f"{rows} rows in a prefill: a graph holds one prompt, and a decode with a row at "
                "position 0 is taken for a prefill; call with that row alone"
            )
        mask = arguments.get("attention_mask", (positions >= np.arange(count)).astype(np.int32))
        width = strict_bucket(mask.shape[1], self._shape.prefill)
        positions = padded_to(positions, width, fill=1)
        last = int(positions.argmax())
        if last != int(mask.sum()) - 1:
            raise RuntimeStepError(
                f"the graph would answer for token {last}, the first of the largest position, not "
                f"for the prompt's last, {int(mask.sum()) - 1}; pad a lone token with position 0"
            )
        tensors = {
            **arguments,
            "input_ids": padded_to(tokens, width, fill=0),
            "position_ids": positions,
            "attention_mask": padded_to(mask, width, fill=0),
        }
        self._check_lines(arguments["seq_ids"])
        graph = Graph(f"prefill {width}", _shapes(1, width, width))
        graph.check(tensors)
        return GraphCall(graph, True, tensors, np.array([last]))

    def _decode(self, arguments: Arguments) -> GraphCall:
        lines, positions = arguments["seq_ids"], arguments["position_ids"]
        count = self._shape.max_num_seqs
        new = self._shape.tokens_per_row
        if positions.shape[1] != new:
            raise RuntimeStepError(
                f"a prefill of {positions.shape[1]} tokens goes on from position "
                f"{positions.min()}: the contiguous KV layout has no chunked prefill"
            )
        self._check_lines(lines)
        if lines.size == count and (lines != np.arange(count)).any():
            raise RuntimeStepError(
                f"rows of a full batch are for KV lines {lines.tolist()}: row i reads and writes "
                "line i whatever its line is; sort the rows"
            )
        first = positions[:, :1]
        longest = int(first.max())
        width = strict_bucket(longest + (new if new > 1 else 0), self._shape.context)
        self._check_seen(arguments, first)
        # Rows of lines left out repeat the first one; apply_seq_ids_mask keeps them from writing.
        source, written = np.zeros(count, np.int64), np.full(count, -1)
        source[lines], written[lines] = np.arange(lines.size), lines
        tensors = {name: by_row(each, source, lines.size) for name, each in arguments.items()}
        tensors |= {
            "seq_ids": written,
            "attention_mask": visible(tensors["position_ids"][:, :1], width),
        }
        graph = Graph(f"decode {width}", _shapes(count, new, width))
        graph.check(tensors)
        tokens = lines[:, np.newaxis] * new + np.arange(new)
        return GraphCall(graph, False, tensors, tokens.reshape(-1))

    def _check_seen(self, arguments: Arguments, first: Array) -> None:
        """Raise unless a mask is given where none is made rightly, and says what is seen."""
        mask = arguments.get("attention_mask")
        if mask is None and self._shape.tokens_per_row == 1:
            return
        if mask is None or not np.array_equal(mask, visible(first, int(first.max()))):
            raise RuntimeStepError(
                "a decode with drafts needs an attention mask of the tokens before each row's first"
            )

    def _check_lines(self, lines: Array) -> None:
        count = self._shape.max_num_seqs
        if lines.min() < 0 or lines.max() >= count or np.unique(lines).size != lines.size:
            raise RuntimeStepError(
                f"KV lines {lines.tolist()} are not {lines.size} different ones of 0 to "
                f"{count - 1}; a graph would write elsewhere"
            )


def _shapes(rows: int, new: int, context: int) -> dict[str, tuple[int, ...]]:
    return {
        "input_ids": (rows, new),
        "attention_mask": (rows, context),
        "position_ids": (rows, new),
        "seq_ids": (rows,),
        "sampling_params": (rows, 3),
    }


def _int64(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64).reshape(-1))
