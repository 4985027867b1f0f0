import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.kernels.int8 import peaks_of, quantize


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_no_weight_is_off_by_more_than_half_a_step_of_its_output(num_outputs, num_inputs, seed):
    torch.manual_seed(seed)
    weight = torch.randn(num_outputs, num_inputs) * torch.rand(num_outputs, 1) * 10
    found = quantize(weight, peaks_of(weight))
    error = (found.dequantized(torch.float32) - weight).abs()
    assert found.values.dtype == torch.int8
    assert found.values.abs().max() <= 127
    assert bool((error <= found.scales[:, None] * 0.5001).all())


@pytest.mark.parametrize("num_parts", [2, 3])
def test_parts_of_the_inputs_are_the_whole_cut(num_parts):
    torch.manual_seed(0)
    weight = torch.randn(24, 36)
    whole = quantize(weight, peaks_of(weight))
    parts = [quantize(part, peaks_of(weight)) for part in weight.chunk(num_parts, dim=1)]
    assert torch.equal(torch.cat([part.values for part in parts], dim=1), whole.values)
    assert all(torch.equal(part.scales, whole.scales) for part in parts)


def test_an_output_of_zeros_stays_zero():
    weight = torch.zeros(2, 4)
    assert not quantize(weight, peaks_of(weight)).dequantized(torch.float32).any()


def test_the_largest_weight_of_an_output_is_kept():
    weight = torch.tensor([[-3.0, 1.0], [0.5, 0.25]])
    found = quantize(weight, peaks_of(weight))
    assert found.values.tolist() == [[-127, 42], [127, 64]]
    torch.testing.assert_close(found.scales, torch.tensor([3.0, 0.5]) / 127)
