"""`TensorSource`: where one follower's slices of the weights are read from."""

from collections.abc import Sequence
from typing import Protocol

import torch

from rufus_serve.shard.partition import Span


class TensorSource(Protocol):
    """A whole checkpoint, or the slices of one follower cut out of it beforehand."""

    def __contains__(self, name: object) -> bool:
        """Whether `name` can be read."""

    def read(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        rows: Span | None = None,
        columns: Span | None = None,
    ) -> torch.Tensor:
        """Part of tensor `name`, whose whole has `shape`, converted to `dtype`.

        Raises:
            ModelError: there is no such tensor, or it is of another shape.
        """

    def row_peaks(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The largest magnitude in each row of the whole of `name`, [rows] float32.

        Raises as `read`.
        """

    def dtype_of(self, name: str) -> str:
        """`name`'s stored dtype as safetensors writes it, for example BF16."""

    def close(self) -> None:
        """Let go of the files; may be called twice."""
