"""`PackedLinear`: a weight in the layout that the kernels read from one end to the other.

32 outputs make a panel; in it, pairs of inputs follow each other, each pair of all 32 outputs:
[N / 32][K / 2][32][2] in bfloat16. In int8 the first inputs of all 32 outputs come before the
second ones: [N / 32][K / 2][2][32]. Zeros fill up outputs to whole panels, and inputs to a
multiple of 16.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.int8 import Int8Weight
from rufus_serve.kernels.structs import Weight, address_of

PANEL = 32
HALF_PANEL = PANEL // 2


class PackedLinear:
    """Owns one weight and its bias."""

    panels: torch.Tensor
    """[N / 32, K / 2, 32] int32, each the two inputs of a pair; or [N / 32, K / 2, 2, 32] int8."""

    def __init__(
        self,
        weight: torch.Tensor | Int8Weight,
        bias: torch.Tensor | None = None,
        *,
        arena: Arena,
        is_gated: bool = False,
    ) -> None:
        """Pack `weight` [N, K], bfloat16 or int8, and `bias` [N].

        `is_gated`: the first half of the outputs are gates of the second half, and go into the
        same panels as what they gate: 16 and 16.
        """
        arrange = _gates_beside if is_gated else _as_they_are
        if isinstance(weight, Int8Weight):
            self._scales: torch.Tensor | None = _whole_panels(arrange(weight.scales))
            self.panels = _pack_int8(_filled_up(arrange(weight.values)), arena)
        else:
            self._scales = None
            self.panels = _pack_bfloat16(_filled_up(arrange(weight)), arena)
        self._bias = None if bias is None else _whole_panels(arrange(bias).float())
        held = (self.panels, self._scales, self._bias)
        self.nbytes = sum(each.nbytes for each in held if each is not None)

    @property
    def num_inputs(self) -> int:
        """K, filled up."""
        return 2 * self.panels.shape[1]

    def as_struct(self) -> Weight:
        """For a call; valid while this object is."""
        return Weight(
            address_of(self.panels), address_of(self._scales), address_of(self._bias),
            self.num_inputs, self.panels.shape[0],
        )  # fmt: skip

    def rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """The weights [len(outputs), K] of some outputs of a bfloat16 one, unpacked."""
        assert self._scales is None, "an embedding is not quantized"
        found = self.panels[outputs // PANEL, :, outputs % PANEL]
        return found.view(torch.bfloat16)


def _pack_bfloat16(weight: torch.Tensor, arena: Arena) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    num_panels = num_outputs // PANEL
    panels = arena.empty((num_panels, num_inputs // 2, PANEL), torch.int32)
    pairs = weight.view(torch.int32).view(num_panels, PANEL, num_inputs // 2)
    return panels.copy_(pairs.transpose(1, 2))


def _pack_int8(weight: torch.Tensor, arena: Arena) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    num_panels = num_outputs // PANEL
    panels = arena.empty((num_panels, num_inputs // 2, 2, PANEL), torch.int8)
    pairs = weight.view(num_panels, PANEL, num_inputs // 2, 2)
    return panels.copy_(pairs.permute(0, 2, 3, 1))


def _filled_up(weight: torch.Tensor) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    return F.pad(weight, (0, -num_inputs % HALF_PANEL, 0, -num_outputs % PANEL)).contiguous()


def _whole_panels(of_outputs: torch.Tensor) -> torch.Tensor:
    return F.pad(of_outputs, (0, -len(of_outputs) % PANEL))


def _as_they_are(stacked: torch.Tensor) -> torch.Tensor:
    return stacked


def _gates_beside(stacked: torch.Tensor) -> torch.Tensor:
    """[2 I, ...], gates first, to panels of 16 gates and 16 others, filled up with zeros."""
    size = stacked.shape[0] // 2
    width = -(-size // HALF_PANEL) * HALF_PANEL
    halves = stacked.new_zeros(2, width, *stacked.shape[1:])
    halves[0, :size], halves[1, :size] = stacked[:size], stacked[size:]
    by_panel = halves.view(2, -1, HALF_PANEL, *stacked.shape[1:])
    return by_panel.transpose(0, 1).reshape(2 * width, *stacked.shape[1:])
