import pytest
import torch
from tests.unit.kernels.layers import (
    Context,
    RandomStep,
    Sequence,
    Sizes,
    assert_close,
    reference_norm,
)

from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.packing import PackedLinear
from rufus_serve.kernels.structs import address_of


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 131])
@pytest.mark.parametrize("tokens", [[4], [0, 1, 2, 3, 4], list(range(70))])
def test_are_float32_of_the_tokens_asked_for(kernels, vocab_size, tokens):
    torch.manual_seed(0)
    sizes = Sizes()
    step = RandomStep(sizes, [Sequence(0, 70)])
    weight = torch.randn(vocab_size, sizes.hidden).bfloat16()
    norm = torch.rand(sizes.hidden).bfloat16()
    expected = reference_norm(step.hidden + step.delta.float(), norm)[tokens] @ weight.float().T
    packed, context = PackedLinear(weight, arena=Arena()), Context(kernels, 2)
    model, _, arrays = step.structs(16)
    wanted, found = torch.tensor(tokens), torch.empty(len(tokens), vocab_size)
    kernels.functions.logits(
        context.pointer, model, address_of(norm), packed.as_struct(), arrays, address_of(wanted),
        len(tokens), address_of(found), vocab_size,
    )  # fmt: skip
    assert_close(found, expected)
