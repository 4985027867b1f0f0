"""Device memory of one core: weights, KV cache, and what is kept back for everything else.

Weight-only int8 quantization covers the linear layers; embedding, output layer, routers and
norms stay bfloat16. A tied output layer is stored of its own, as it is sharded otherwise than
the embedding.
"""

from typing import Literal

import msgspec

from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.hardware import Instance
from rufus_serve.plan.tensor_parallel import AttentionShares, TensorParallel

WeightFormat = Literal["bfloat16", "int8", "float32"]

LINE_PADDING = 128
"""Tokens by which NxD Inference lengthens each KV line when partial batches are masked
(kv_cache_manager.py of version 0.8)."""

_LINEAR_BYTES = {"bfloat16": 2, "int8": 1, "float32": 4}
_OTHER_BYTES = {"bfloat16": 2, "int8": 2, "float32": 4}

_RESERVED_SHARE = 0.05
_GRAPH_BYTES = 32 << 20
_LIVE_ACTIVATIONS = 8


class CoreWeights(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of weights that one core holds."""

    linear: int
    """Attention and ordinary MLPs, of all layers."""
    expert: int
    """One expert of one layer."""
    num_experts: int
    """Experts of all layers together."""
    embedding: int
    other: int
    """Output layer, routers, norms."""
    prefill_attention: int = 0
    """Attention once more, for prefill, where decode wants it cut otherwise."""

    @property
    def total(self) -> int:
        """All of them."""
        experts = self.expert * self.num_experts
        return self.linear + experts + self.embedding + self.other + self.prefill_attention


class CoreMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One core's memory budget in bytes."""

    hbm: int
    weights: int
    kv: int
    scratch: int
    kv_per_token: int
    kv_per_sequence: int
    max_sequences: int
    """Sequences of the planned length that fit beside weights and scratch."""

    @property
    def free(self) -> int:
        """What is left; negative if it does not fit."""
        return self.hbm - self.weights - self.kv - self.scratch

    @property
    def fits(self) -> bool:
        """Whether weights, scratch and the KV cache of all sequences fit."""
        return self.free >= 0


def core_weights(
    shape: ModelShape,
    tp: TensorParallel,
    weights: WeightFormat,
    *,
    attention: AttentionShares | None = None,
) -> CoreWeights:
    """What one core holds of the model; attention is cut like the rest unless told otherwise."""
    attention = attention or AttentionShares(prefill=tp, decode=tp)
    linear_bytes, other_bytes = _LINEAR_BYTES[weights], _OTHER_BYTES[weights]
    hidden, degree = shape.hidden_size, tp.degree
    decode = shape.num_layers * _attention_params(shape, attention.decode)
    prefill = shape.num_layers * _attention_params(shape, attention.prefill)
    mlp = 3 * hidden * -(-shape.intermediate_size // degree)
    vocab = -(-shape.vocab_size // degree) * hidden
    norms = (2 * shape.num_layers + 1) * hidden
    routers = shape.num_moe_layers * shape.router_params
    return CoreWeights(
        linear=linear_bytes * (decode + shape.num_dense_layers * mlp),
        prefill_attention=linear_bytes * prefill * attention.has_two_copies,
        expert=linear_bytes * 3 * hidden * -(-shape.expert_size // degree),
        num_experts=shape.num_experts * shape.num_moe_layers,
        embedding=other_bytes * vocab,
        other=other_bytes * (vocab + norms + routers),
    )


def _attention_params(shape: ModelShape, tp: TensorParallel) -> int:
    """Of one layer on one core."""
    heads = tp.q_heads_per_core + tp.kv_heads_per_core
    return 2 * shape.hidden_size * heads * shape.head_size


def kv_bytes_per_token(
    shape: ModelShape, tp: TensorParallel, weights: WeightFormat, *, data_parallel: int = 1
) -> int:
    """KV cache of one token on one core; the cache is bfloat16 unless all is float32.

    `tp` is how decode's attention is cut. With data parallelism a core holds the lines of its
    own group's sequences only; this is the mean over all sequences.
    """
    heads = 2 * tp.kv_heads_per_core * shape.head_size
    return shape.num_layers * heads * _OTHER_BYTES[weights] // data_parallel


def scratch_bytes(
    instance: Instance, shape: ModelShape, *, prefill_tokens: int, rows: int, num_graphs: int
) -> int:
    """Memory kept back on each core for the runtime, graphs and activations.

    An assumption, not a measurement: 5 % of the device, 32 MiB a graph, eight activations of the
    largest prefill, and float32 logits of a full decode.
    """
    activations = _LIVE_ACTIVATIONS * prefill_tokens * shape.hidden_size * 2
    logits = 4 * rows * shape.vocab_size
    reserved = int(instance.core_hbm_bytes * _RESERVED_SHARE)
    return reserved + num_graphs * _GRAPH_BYTES + activations + logits


def core_memory(
    instance: Instance,
    *,
    weights: int,
    scratch: int,
    kv_per_token: int,
    tokens: int,
    rows: int,
) -> CoreMemory:
    """The budget for `rows` sequences of up to `tokens` tokens each."""
    per_sequence = kv_per_token * (tokens + LINE_PADDING)
    room = max(0, instance.core_hbm_bytes - weights - scratch)
    return CoreMemory(
        hbm=instance.core_hbm_bytes,
        weights=weights,
        kv=per_sequence * rows,
        scratch=scratch,
        kv_per_token=kv_per_token,
        kv_per_sequence=per_sequence,
        max_sequences=room // per_sequence,
    )
