"""Roofline latency of a decode step and of a prefill, with constants fitted to published runs.

The constants are a least-squares fit of relative errors over the trn1.32xlarge rows of
`plan.published` (tensor parallel degree 32, Transformers NeuronX, SDK 2.18: the only published
table for Trn1). The network terms are from the collective communication pages of the Neuron
documentation (neuron-runtime/explore); no run across nodes has been published to check them.
"""

import math

import msgspec

from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.hardware import Instance
from rufus_serve.plan.memory import CoreWeights

LAYER_MS = 0.163
"""Launch and on-node all-reduces of one layer: more than half of a small batch's step."""
ROW_MS = 0.0051
"""More work per layer for each further row, for a hidden size of 4096."""
KV_EFFICIENCY = 0.59
"""Share of the memory bandwidth at which the KV cache is read."""
PREFILL_EFFICIENCY = 0.16
"""Share of the peak operations that a prefill reaches."""
EFA_HOP_MS = 0.015
ALL_REDUCES_PER_LAYER = 2

DECODE_FORMULA = (
    f"weights/bandwidth + layers x {LAYER_MS} ms + layers x (rows-1) x hidden/4096 x {ROW_MS} ms"
    f" + KV/({KV_EFFICIENCY} x bandwidth)"
)
EFA_FORMULA = (
    f"layers x {ALL_REDUCES_PER_LAYER} all-reduces x (1 to 2) x log2(nodes) hops x {EFA_HOP_MS} ms"
    " + payload/EFA bandwidth"
)
PREFILL_FORMULA = f"operations/({PREFILL_EFFICIENCY} x peak) + one decode step"


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A model's shard on its hardware; what both estimates start from."""

    instance: Instance
    shape: ModelShape
    weights: CoreWeights
    kv_per_token: int
    """On one core."""
    num_nodes: int
    degree: int
    attention_dp_degree: int = 1


class DecodeEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Terms of one decode step in milliseconds."""

    rows: int
    context: int
    weights_ms: float
    layers_ms: float
    rows_ms: float
    kv_ms: float
    efa_min_ms: float
    efa_max_ms: float

    @property
    def min_ms(self) -> float:
        """With the fastest all-reduce across nodes."""
        return self.weights_ms + self.layers_ms + self.rows_ms + self.kv_ms + self.efa_min_ms

    @property
    def max_ms(self) -> float:
        """With the slower one; equal to `min_ms` on one node."""
        return self.min_ms - self.efa_min_ms + self.efa_max_ms

    @property
    def tokens_per_s(self) -> float:
        """Of all rows together, at `max_ms`."""
        return self.rows * 1e3 / self.max_ms


def decode_estimate(placement: Placement, *, rows: int, context: int) -> DecodeEstimate:
    """A decode of `rows` sequences, each with `context` tokens cached."""
    shape, speed = placement.shape, placement.instance.core_bytes_per_ms
    kv = placement.kv_per_token * rows * context
    efa_min, efa_max = _efa_ms(placement, rows)
    return DecodeEstimate(
        rows=rows,
        context=context,
        weights_ms=_bytes_read(placement, rows) / speed,
        layers_ms=shape.num_layers * LAYER_MS,
        rows_ms=shape.num_layers * (rows - 1) * shape.hidden_size / 4096 * ROW_MS,
        kv_ms=kv / (speed * KV_EFFICIENCY),
        efa_min_ms=efa_min,
        efa_max_ms=efa_max,
    )


def prefill_ms(placement: Placement, *, prompts: int, tokens: int) -> float:
    """Time until the last of `prompts` prompts of `tokens` tokens has its first output."""
    shape = placement.shape
    attention = shape.num_layers * shape.num_q_heads * shape.head_size * tokens
    operations = 2.0 * prompts * tokens * (shape.num_matmul_params + attention)
    peak = placement.instance.core_flops_per_ms * placement.degree
    step = decode_estimate(placement, rows=1, context=0)
    payload = prompts * (_efa_ms(placement, tokens)[1] - _efa_ms(placement, 0)[1])
    return operations / (peak * PREFILL_EFFICIENCY) + step.max_ms + payload


def _bytes_read(placement: Placement, rows: int) -> float:
    """Weights one core reads: all but the embedding, and of experts those that are chosen.

    Rows choose independently, so `rows` of them choose E x (1 - (1 - k/E)^rows) of E experts.
    """
    weights, shape = placement.weights, placement.shape
    read = float(weights.linear + weights.other)
    if not weights.num_experts:
        return read
    missed = (1 - shape.experts_per_token / shape.num_experts) ** rows
    return read + weights.expert * weights.num_experts * (1 - missed)


def _all_reduces_across_nodes(placement: Placement) -> float:
    """Of one layer. A decode whose attention groups stay on their nodes only gathers their rows.

    A gather is half an all-reduce.
    """
    if placement.attention_dp_degree % placement.num_nodes:
        return ALL_REDUCES_PER_LAYER
    return ALL_REDUCES_PER_LAYER - 0.5


def _efa_ms(placement: Placement, rows: int) -> tuple[float, float]:
    """Least and most time that all-reduces across nodes add to a step of `rows` tokens."""
    nodes = placement.num_nodes
    if nodes == 1:
        return 0.0, 0.0
    count = placement.shape.num_layers * _all_reduces_across_nodes(placement)
    payload = rows * placement.shape.hidden_size * 2 * 2 * (nodes - 1) / nodes
    transfer = count * payload / placement.instance.efa_bytes_per_ms
    hops = count * math.ceil(math.log2(nodes)) * EFA_HOP_MS
    return hops + transfer, 2 * hops + transfer
