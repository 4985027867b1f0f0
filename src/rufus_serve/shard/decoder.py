"""`Decoder`: one follower's part of a Llama-like decoder, from token ids to hidden states.

Every layer sums over all followers twice, after attention and after the MLP; the embedding
sums once. The order of operations follows Hugging Face transformers, so that float32 outputs
lead to the same greedy tokens.

Shape legend: T new tokens, R rows, H KV heads held here, G query heads per KV head held here,
D head size, C context, M hidden size. In a decode T = R.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.shard.attention import Attention
from rufus_serve.shard.kv_cache import KvCache
from rufus_serve.shard.linear import Linear
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.rope import RopeTable, rotate
from rufus_serve.shard.step_inputs import StepInputs
from rufus_serve.shard.weights import DecoderWeights, LayerWeights

AllReduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a contiguous tensor over all followers; may do so in place."""

Readout = Callable[[torch.Tensor], torch.Tensor]
"""This follower's float32 logits [N, V share] behind tokens [N] of a step, given by their places
among its new ones. Valid until the next step runs."""

_Layer = LayerWeights[Linear]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Decoder:
    """Runs steps; used by one thread."""

    def __init__(
        self,
        model: ModelConfig,
        partition: Partition,
        *,
        weights: DecoderWeights[Linear],
        num_positions: int,
    ) -> None:
        self._model = model
        self._partition = partition
        self._weights = weights
        self._activation = _ACTIVATIONS[model.activation]
        self._inner_size = partition.mlp_columns.size
        dtype = weights.embedding.dtype
        self._rope = RopeTable(
            model.rope, model.head_size, num_positions=num_positions, dtype=dtype
        )

    def run(self, step: StepInputs, cache: KvCache, *, all_reduce: AllReduce) -> Readout:
        """Run one step in inference mode, as whatever its logits are asked of must be."""
        attention = Attention(
            step, cache, windows=self._model.windows, group_size=self._partition.group_size
        )
        cos, sin = self._rope.at(step.positions)
        hidden = all_reduce(self._embed(step.token_ids))
        for index, layer in enumerate(self._weights.layers):
            keys_values_queries = self._project(hidden, layer, cos, sin)
            heads = attention.run(index, *keys_values_queries)
            hidden = hidden + all_reduce(layer.output(heads))
            hidden = hidden + all_reduce(self._mlp(hidden, layer))
        return functools.partial(self._logits, hidden)

    def _logits(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        outputs = self._norm(hidden[tokens], self._weights.final_norm)
        return self._weights.lm_head(outputs).float()

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """This follower's rows of the embedding, zero for tokens of others: [T, M]."""
        rows = self._partition.vocab_rows
        if rows.size == self._partition.vocab_size:
            return self._weights.embedding[token_ids]
        is_here = (token_ids >= rows.start) & (token_ids < rows.stop)
        local = (token_ids - rows.start).clamp_(0, rows.size - 1)
        return self._weights.embedding[local].masked_fill_(~is_here.unsqueeze(1), 0)

    def _project(
        self,
        hidden: torch.Tensor,
        layer: _Layer,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated queries [T, H * G, D], and rotated keys with values [T, 2H, D]."""
        num_q, num_kv = self._partition.q_heads.size, self._partition.kv_heads.size
        projected = layer.qkv(self._norm(hidden, layer.input_norm))
        heads = projected.view(-1, num_q + 2 * num_kv, self._model.head_size)
        if layer.q_norm is not None and layer.k_norm is not None:
            heads[:, :num_q] = self._norm(heads[:, :num_q], layer.q_norm)
            keys = heads[:, num_q : num_q + num_kv]
            heads[:, num_q : num_q + num_kv] = self._norm(keys, layer.k_norm)
        turned = heads[:, : num_q + num_kv]
        turned.copy_(rotate(turned, cos, sin))
        return heads[:, :num_q], heads[:, num_q:]

    def _mlp(self, hidden: torch.Tensor, layer: _Layer) -> torch.Tensor:
        inner = layer.gate_up(self._norm(hidden, layer.mlp_norm))
        gate, up = inner[:, : self._inner_size], inner[:, self._inner_size :]
        return layer.down(self._activation(gate).mul_(up))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.rms_norm(x, weight.shape, weight, self._model.rms_norm_eps)
