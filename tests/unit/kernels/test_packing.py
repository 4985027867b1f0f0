import torch
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.packing import PANEL, PackedLinear


@given(st.integers(1, 100), st.integers(1, 70))
def test_holds_every_weight_and_fills_up_with_zeros(num_outputs, num_inputs):
    weight = torch.randn(num_outputs, num_inputs).bfloat16()
    packed = PackedLinear(weight, arena=Arena())
    assert packed.num_inputs == -(-num_inputs // 16) * 16
    rows = packed.rows(torch.arange(packed.panels.shape[0] * PANEL))
    assert torch.equal(rows[:num_outputs, :num_inputs], weight)
    assert not rows[num_outputs:].any()
    assert not rows[:, num_inputs:].any()


@given(st.integers(1, 50))
def test_puts_gates_beside_what_they_gate(size):
    weight = torch.arange(2 * size)[:, None].expand(-1, 16).bfloat16()
    packed = PackedLinear(weight, arena=Arena(), is_gated=True)
    outputs = torch.arange(size)
    gates = outputs // 16 * PANEL + outputs % 16
    assert torch.equal(packed.rows(gates), weight[:size])
    assert torch.equal(packed.rows(gates + 16), weight[size:])
