"""`Graph`: one compiled graph, an exact list of input shapes.

Shape legend: B rows of a decode (max_num_seqs), R rows of a call, P a prefill bucket, C a context
bucket.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array

Arguments = Mapping[str, Array]
"""Keyword arguments of `forward`."""


@dataclass(frozen=True)
class Graph:
    """Takes tensors of these shapes and no others."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]

    def check(self, tensors: Arguments) -> None:
        """Raise RuntimeStepError unless every tensor has its compiled shape."""
        found = {name: tensor.shape for name, tensor in tensors.items()}
        wrong = [
            f"{name} is {_shown(found.get(name))}, compiled {_shown(self.shapes.get(name))}"
            for name in sorted(found.keys() | self.shapes.keys())
            if found.get(name) != self.shapes.get(name)
        ]
        if wrong:
            raise RuntimeStepError(f"graph {self.name} does not take this call: {'; '.join(wrong)}")


@dataclass(frozen=True)
class GraphCall:
    """A call as it reaches the device."""

    graph: Graph
    is_prefill: bool
    tensors: dict[str, Array]
    rows: Array
    """Which of the graph's rows of logits answer the call, in its order."""
    table: Array | None = None
    """Block layout: [R, W] the block table before it was cut to the graph's width."""


def padded_to(values: Array, width: int, *, fill: int) -> Array:
    """`values` [R, n] on the right to [R, width]; cut if longer."""
    kept = values[:, :width]
    missing = width - kept.shape[1]
    return np.pad(kept, ((0, 0), (0, missing)), constant_values=fill)


def by_row(values: Array, source: Array, num_rows: int) -> Array:
    """`values` [R, ...] with row `source[i]` as row i; as they are if they have not R rows."""
    return values[source] if values.shape[0] == num_rows else values


def visible(positions: Array, width: int) -> Array:
    """[R, width] 1 for the tokens before each row's position [R, 1]."""
    return (np.arange(width) < positions).astype(np.int32)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
