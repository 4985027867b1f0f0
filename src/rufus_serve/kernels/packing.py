"""`PackedLinear`: a weight in the layout that the kernels read from one end to the other.

32 outputs make a panel; in it, pairs of inputs follow each other, each pair of all 32 outputs:
[N / 32][K / 2][32][2]. Zeros fill up outputs to whole panels, and inputs to a multiple of 16.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.structs import Weight, address_of

PANEL = 32
HALF_PANEL = PANEL // 2


class PackedLinear:
    """Owns one weight and its bias."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        arena: Arena,
        is_gated: bool = False,
    ) -> None:
        """Pack `weight` [N, K] bfloat16 and `bias` [N].

        `is_gated`: the first half of the outputs are gates of the second half, and go into the
        same panels as what they gate: 16 and 16.
        """
        if is_gated:
            weight = _gates_beside(weight)
            bias = None if bias is None else _gates_beside(bias)
        weight = _filled_up(weight)
        num_outputs, num_inputs = weight.shape
        num_panels = num_outputs // PANEL
        self.panels = arena.empty((num_panels, num_inputs // 2, PANEL), torch.int32)
        """[N / 32, K / 2, 32], each element the two inputs of a pair."""
        pairs = weight.view(torch.int32).view(num_panels, PANEL, num_inputs // 2)
        self.panels.copy_(pairs.transpose(1, 2))
        self._bias = None if bias is None else F.pad(bias.float(), (0, -len(bias) % PANEL))
        self.nbytes = self.panels.nbytes + (0 if self._bias is None else self._bias.nbytes)

    @property
    def num_inputs(self) -> int:
        """K, filled up."""
        return 2 * self.panels.shape[1]

    def as_struct(self) -> Weight:
        """For a call; valid while this object is."""
        return Weight(
            address_of(self.panels), address_of(self._bias), self.num_inputs, self.panels.shape[0]
        )

    def rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """The weights [len(outputs), K] of some outputs, unpacked."""
        found = self.panels[outputs // PANEL, :, outputs % PANEL]
        return found.view(torch.bfloat16)


def _filled_up(weight: torch.Tensor) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    return F.pad(weight, (0, -num_inputs % HALF_PANEL, 0, -num_outputs % PANEL)).contiguous()


def _gates_beside(stacked: torch.Tensor) -> torch.Tensor:
    """[2 I, ...], gates first, to panels of 16 gates and 16 others, filled up with zeros."""
    size = stacked.shape[0] // 2
    width = -(-size // HALF_PANEL) * HALF_PANEL
    halves = stacked.new_zeros(2, width, *stacked.shape[1:])
    halves[0, :size], halves[1, :size] = stacked[:size], stacked[size:]
    by_panel = halves.view(2, -1, HALF_PANEL, *stacked.shape[1:])
    return by_panel.transpose(0, 1).reshape(2 * width, *stacked.shape[1:])
