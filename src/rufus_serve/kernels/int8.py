"""`Int8Weight`: a weight in 8 bits, each output's own range divided into 255 steps.

Symmetric, so that no offset is needed, and per output, so that a product is scaled once, behind
the sum. The same scheme as NxD Inference's `per_channel_symmetric`.
"""

from dataclasses import dataclass

import torch

_LARGEST = 127
_LEAST_SCALE = torch.finfo(torch.float32).eps
"""For outputs of zeros; NxD Inference takes the same."""


@dataclass(frozen=True)
class Int8Weight:
    """Stands for `values` * `scales`."""

    values: torch.Tensor
    """[N, K] int8, of magnitudes up to 127."""
    scales: torch.Tensor
    """[N] float32"""

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K] in `dtype`."""
        return (self.values.float() * self.scales.unsqueeze(1)).to(dtype)


def quantize(weight: torch.Tensor, peaks: torch.Tensor) -> Int8Weight:
    """`weight` [N, K] in 8 bits.

    `peaks` [N] are the largest magnitudes of the whole outputs: of a weight that is cut along its
    inputs, all parts must have one scale.
    """
    scales = (peaks.float() / _LARGEST).clamp(min=_LEAST_SCALE)
    # As torch quantizes, so that NxD Inference's are the same to the last bit.
    values = (weight.float() * scales.reciprocal().unsqueeze(1)).round_().to(torch.int8)
    return Int8Weight(values, scales)


def peaks_of(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each output of `weight` [N, K]: [N] float32."""
    return weight.abs().amax(dim=1).float()
