import torch
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.int8 import Int8Weight
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


@given(st.integers(1, 100), st.integers(1, 70))
def test_int8_has_the_first_inputs_of_a_panel_before_the_second_ones(num_outputs, num_inputs):
    values = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8)
    packed = PackedLinear(Int8Weight(values, torch.rand(num_outputs)), arena=Arena())
    assert packed.num_inputs == -(-num_inputs // 16) * 16
    unpacked = packed.panels.permute(0, 3, 1, 2).flatten(0, 1).flatten(1)
    assert torch.equal(unpacked[:num_outputs, :num_inputs], values)
    assert not unpacked[num_outputs:].any()
    assert not unpacked[:, num_inputs:].any()


def test_int8_takes_half_the_memory_and_a_scale_for_each_output():
    weight = torch.randn(64, 320)
    wide = PackedLinear(weight.bfloat16(), arena=Arena())
    narrow = PackedLinear(Int8Weight(weight.to(torch.int8), torch.ones(64)), arena=Arena())
    assert narrow.nbytes == wide.nbytes // 2 + 64 * 4
