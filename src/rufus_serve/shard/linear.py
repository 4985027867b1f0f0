"""`Linear`: a weight ready to be multiplied with, packed for oneDNN where that is faster."""

import functools
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.kernels.int8 import Int8Weight


class StoredLinear(Protocol):
    """A weight in whatever layout its user multiplies with."""

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias."""


LinearT = TypeVar("LinearT", bound=StoredLinear)
MadeT_co = TypeVar("MadeT_co", bound=StoredLinear, covariant=True)


class MakeLinear(Protocol[MadeT_co]):
    """Takes over a weight [out, in] and a bias."""

    def __call__(
        self,
        weight: torch.Tensor | Int8Weight,
        bias: torch.Tensor | None = None,
        *,
        is_gated: bool = False,
    ) -> MadeT_co:
        """`is_gated`: the first half of the outputs are the gates of the second half."""


class Linear:
    """y = x Wᵀ + b for x [T, in]; owns its weight [out, in], or what an int8 one stands for."""

    def __init__(
        self,
        weight: torch.Tensor | Int8Weight,
        bias: torch.Tensor | None = None,
        *,
        dtype: torch.dtype,
        is_gated: bool = False,  # noqa: ARG002 - the order of outputs stays as it is
    ) -> None:
        if isinstance(weight, Int8Weight):
            weight = weight.dequantized(dtype)
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._bias = bias
        self._is_packed = weight.dtype == torch.bfloat16 and can_pack()
        # Packed for one row: measured as fast for hundreds, and decode is what runs most.
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, 1)  # noqa: SLF001 - no public name
            if self._is_packed
            else weight
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        if self._is_packed:
            return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]  # noqa: SLF001
                x, self._weight, self._bias, "none", [], ""
            )
        return F.linear(x, self._weight, self._bias)


@functools.cache
def can_pack() -> bool:
    """Whether this torch and CPU multiply packed bfloat16 weights.

    Packing halves the time of a decode's multiplications (3rd generation EPYC and later,
    torch 2.13), as the plain call rearranges the weight each time.
    """
    try:
        weight = torch.eye(32, dtype=torch.bfloat16)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)  # noqa: SLF001
        product = torch.ops.mkldnn._linear_pointwise(weight, packed, None, "none", [], "")  # noqa: SLF001
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, weight)
