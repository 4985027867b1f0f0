"""A random decoder layer, its arrays for the kernels, and what float32 torch makes of it."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from rufus_serve.kernels import structs
from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.int8 import peaks_of, quantize
from rufus_serve.kernels.library import Library
from rufus_serve.kernels.packing import PackedLinear
from rufus_serve.kernels.structs import address_of

EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    hidden: int = 64
    head: int = 32
    num_kv_heads: int = 2
    group: int = 3
    inner: int = 40
    block: int = 16
    window: int = 0
    has_bias: bool = False
    has_qk_norm: bool = False
    is_int8: bool = False

    @property
    def num_q_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def projected(self) -> int:
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head


def _random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).bfloat16()


class RandomLayer:
    """Weights of one layer."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        query_width = sizes.num_q_heads * sizes.head
        self.input_norm, self.mlp_norm = 1 + _random(2, sizes.hidden, scale=0.2)
        self.q_norm, self.k_norm = 1 + _random(2, sizes.head, scale=0.2)
        self.qkv = self._linear(sizes.projected, sizes.hidden)
        self.output = self._linear(sizes.hidden, query_width)
        self.gate_up = self._linear(2 * sizes.inner, sizes.hidden)
        self.down = self._linear(sizes.hidden, sizes.inner)
        arena = Arena()
        self._packed = [
            self._pack(*self.qkv, arena=arena),
            self._pack(*self.output, arena=arena),
            self._pack(*self.gate_up, arena=arena, is_gated=True),
            self._pack(*self.down, arena=arena),
        ]
        qkv, output, gate_up, down = (packed.as_struct() for packed in self._packed)
        has_norm = sizes.has_qk_norm
        self.struct = structs.Layer(
            address_of(self.input_norm), qkv,
            address_of(self.q_norm if has_norm else None),
            address_of(self.k_norm if has_norm else None),
            output, address_of(self.mlp_norm), gate_up, down, sizes.window,
        )  # fmt: skip
        self.inner_size = self._packed[3].num_inputs

    def _linear(self, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = _random(outputs) if self.sizes.has_bias else None
        weight = _random(outputs, inputs, scale=inputs**-0.5)
        if self.sizes.is_int8:
            weight = quantize(weight, peaks_of(weight)).dequantized(torch.float32)
        return weight, bias

    def _pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any
    ) -> PackedLinear:
        stored = quantize(weight, peaks_of(weight)) if self.sizes.is_int8 else weight
        return PackedLinear(stored, bias, **options)


@dataclass(frozen=True)
class Sequence:
    num_computed: int
    num_new: int

    @property
    def length(self) -> int:
        return self.num_computed + self.num_new


@dataclass
class RandomStep:
    """A step of `sequences`, with a cache in which their blocks lie mixed up."""

    sizes: Sizes
    sequences: list[Sequence]
    num_positions: int = 0
    hidden: torch.Tensor = field(init=False)
    delta: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        sizes, block = self.sizes, self.sizes.block
        self.num_positions = self.num_positions or max(each.length for each in self.sequences)
        width = -(-self.num_positions // block)
        order = torch.randperm(len(self.sequences) * width) + 1
        self.blocks = order.view(len(self.sequences), width).contiguous()
        num_slots = (len(order) + 1) * block
        self.cache = _random(2 * sizes.num_kv_heads, num_slots, sizes.head)
        self.positions = torch.cat(
            [torch.arange(each.num_computed, each.length) for each in self.sequences]
        )
        owners = [[index] * each.num_new for index, each in enumerate(self.sequences)]
        self.owner = torch.tensor([index for same in owners for index in same])
        self.slots = self._slots(self.owner, self.positions)
        counts = torch.tensor([0] + [each.num_new for each in self.sequences])
        self.starts = counts.cumsum(0)
        self.hidden = torch.randn(len(self.positions), sizes.hidden)
        self.delta = _random(len(self.positions), sizes.hidden)
        angles = torch.rand(self.num_positions, sizes.head // 2) * 6
        self.cos, self.sin = angles.cos(), angles.sin()

    def _slots(self, owner: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        block = self.sizes.block
        return self.blocks[owner, positions // block] * block + positions % block

    def context_slots(self, index: int) -> torch.Tensor:
        """Slots of a sequence's tokens in order."""
        length = self.sequences[index].length
        return self._slots(torch.full((length,), index), torch.arange(length))

    def structs(self, inner_size: int) -> tuple[structs.Model, structs.Cache, structs.Step]:
        sizes = self.sizes
        model = structs.Model(
            sizes.hidden, sizes.head, sizes.num_q_heads, sizes.num_kv_heads, inner_size, EPS,
            address_of(self.cos), address_of(self.sin), self.num_positions,
        )  # fmt: skip
        cache = structs.Cache(address_of(self.cache), self.cache.shape[1], sizes.block)
        step = structs.Step(
            len(self.positions), len(self.sequences), address_of(self.starts),
            address_of(self.positions), address_of(self.slots), address_of(self.blocks),
            self.blocks.shape[1], address_of(self.hidden), address_of(self.delta),
        )  # fmt: skip
        return model, cache, step


class Context:
    """A library's threads and work space."""

    def __init__(self, library: Library, num_threads: int) -> None:
        self.functions = library.functions
        self.pointer = library.functions.create_context(num_threads)

    def __del__(self) -> None:
        self.functions.destroy_context(self.pointer)


def run_attn_half(context: Context, layer: RandomLayer, step: RandomStep) -> None:
    model, cache, arrays = step.structs(layer.inner_size)
    assert context.functions.check_step(model, cache, arrays) == 0
    context.functions.attn_half(context.pointer, model, layer.struct, cache, arrays)


def run_mlp_half(context: Context, layer: RandomLayer, step: RandomStep) -> None:
    model, _, arrays = step.structs(layer.inner_size)
    context.functions.mlp_half(context.pointer, model, layer.struct, arrays)


def reference_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.rms_norm(x, weight.shape, weight.float(), EPS)


def _multiply(x: torch.Tensor, linear: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
    weight, bias = linear
    return F.linear(x, weight.float(), None if bias is None else bias.float())


def reference_attn_half(
    layer: RandomLayer, step: RandomStep
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the half's answer and the cache, float32; `step` stays as it is."""
    sizes = layer.sizes
    hidden = step.hidden + step.delta.float()
    heads = _multiply(reference_norm(hidden, layer.input_norm), layer.qkv)
    heads = heads.view(-1, sizes.num_q_heads + 2 * sizes.num_kv_heads, sizes.head)
    queries, keys, values = heads.split(
        [sizes.num_q_heads, sizes.num_kv_heads, sizes.num_kv_heads], dim=1
    )
    if sizes.has_qk_norm:
        queries = reference_norm(queries, layer.q_norm)
        keys = reference_norm(keys, layer.k_norm)
    cos, sin = step.cos[step.positions].unsqueeze(1), step.sin[step.positions].unsqueeze(1)
    queries, keys = _rotated(queries, cos, sin), _rotated(keys, cos, sin)
    cache = step.cache.float()
    cache[:, step.slots] = torch.cat((keys, values), dim=1).transpose(0, 1)
    parts = []
    for index in range(len(step.sequences)):
        own = slice(int(step.starts[index]), int(step.starts[index + 1]))
        context = cache[:, step.context_slots(index)]
        parts.append(_attend(sizes, queries[own], context, step.positions[own]))
    return hidden, _multiply(torch.cat(parts), layer.output), cache


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attend(
    sizes: Sizes, queries: torch.Tensor, context: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    keys, values = context.repeat_interleave(sizes.group, 0).chunk(2)
    at = torch.arange(context.shape[1])
    seen = at <= positions[:, None]
    if sizes.window:
        seen &= at > positions[:, None] - sizes.window
    heads = F.scaled_dot_product_attention(queries.transpose(0, 1), keys, values, attn_mask=seen)
    return heads.transpose(0, 1).flatten(1)


def reference_mlp_half(layer: RandomLayer, step: RandomStep) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and the half's answer, float32."""
    hidden = step.hidden + step.delta.float()
    gate, up = _multiply(reference_norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
    return hidden, _multiply(F.silu(gate) * up, layer.down)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the roundings to bfloat16 on the way, each of 2**-9 of the values' size."""
    error = (found.float() - expected).abs().max()
    assert error <= 0.02 * expected.abs().max() + 1e-3, f"off by {error} of {expected.abs().max()}"
