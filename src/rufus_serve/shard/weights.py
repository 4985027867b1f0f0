"""One follower's weights: which slices of the checkpoint, fused how.

Query, key and value projections are one matrix, as are gate and up projections. Quantized, they
are what the whole checkpoint's quantization is, cut: an output has one scale, whoever holds which
of its inputs.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import torch

from rufus_serve.kernels.int8 import peaks_of, quantize
from rufus_serve.model.tying import EMBEDDING, OUTPUT, embedding_name
from rufus_serve.shard.linear import LinearT, MakeLinear
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition, Span
from rufus_serve.shard.tensor_source import TensorSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerWeights(Generic[LinearT]):
    """One decoder layer."""

    input_norm: torch.Tensor
    qkv: LinearT
    """Output: query heads, then key heads, then value heads."""
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: LinearT
    mlp_norm: torch.Tensor
    gate_up: LinearT
    """Output: gate columns, then up columns."""
    down: LinearT


@dataclass(frozen=True)
class DecoderWeights(Generic[LinearT]):
    """All weights of one follower."""

    embedding: torch.Tensor
    """Rows `Partition.vocab_rows` of the embedding."""
    layers: tuple[LayerWeights[LinearT], ...]
    final_norm: torch.Tensor
    lm_head: LinearT
    is_tied: bool
    """The output layer's weight is the embedding."""
    nbytes: int


class WeightLoader(Generic[LinearT]):
    """Reads one follower's `DecoderWeights`."""

    def __init__(
        self,
        source: TensorSource,
        model: ModelConfig,
        *,
        partition: Partition,
        dtype: torch.dtype,
        make_linear: MakeLinear[LinearT],
        quantizes: bool = False,
    ) -> None:
        """`quantizes`: the layers' linears are made of `Int8Weight`, the output layer is not."""
        self._make_linear = make_linear
        self._source = source
        self._model = model
        self._partition = partition
        self._dtype = dtype
        self._quantizes = quantizes
        # What is quantized is not rounded to another format before.
        self._linear_dtype = torch.float32 if quantizes else dtype

    def load(self, progress: Callable[[int, int, str], None]) -> DecoderWeights[LinearT]:
        """Read everything; `progress` is told of each layer.

        Raises:
            ModelError: a tensor is missing, of another shape or unreadable.
        """
        total = self._model.num_layers + 2
        embedding, output = self._embedding_and_output()
        progress(1, total, "embedding")
        layers = []
        for index in range(self._model.num_layers):
            layers.append(self._layer(f"model.layers.{index}."))
            progress(index + 2, total, f"layer {index}")
        lm_head = self._make_linear(output)
        final_norm = self._vector("model.norm.weight", self._model.hidden_size)
        progress(total, total, "output layer")
        linears = [lm_head, *(linear for layer in layers for linear in _linears(layer))]
        return DecoderWeights(
            embedding=embedding,
            layers=tuple(layers),
            final_norm=final_norm,
            lm_head=lm_head,
            is_tied=output is embedding,
            nbytes=embedding.nbytes + sum(linear.nbytes for linear in linears),
        )

    def _embedding_and_output(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two matrices, or one twice: see `model.tying`."""
        if not self._model.tie_word_embeddings:
            return self._vocab_rows(EMBEDDING), self._vocab_rows(OUTPUT)
        embedding = self._vocab_rows(embedding_name(self._source))
        if EMBEDDING not in self._source or OUTPUT not in self._source:
            return embedding, embedding
        output = self._vocab_rows(OUTPUT)
        # Nothing can be compared where slices are only listed.
        if not output.is_meta and torch.equal(embedding, output):
            return embedding, embedding
        if not output.is_meta:
            _log.warning(
                "tie_word_embeddings is set, but %s is another matrix than %s: both are used",
                OUTPUT, EMBEDDING,
            )  # fmt: skip
        return embedding, output

    def _layer(self, prefix: str) -> LayerWeights[LinearT]:
        model = self._model
        head_size = model.head_size if model.qk_norm else 0
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        return LayerWeights(
            input_norm=self._vector(prefix + "input_layernorm.weight", model.hidden_size),
            qkv=self._qkv(attention),
            q_norm=self._vector(attention + "q_norm.weight", head_size) if head_size else None,
            k_norm=self._vector(attention + "k_norm.weight", head_size) if head_size else None,
            output=self._attention_output(attention),
            mlp_norm=self._vector(prefix + "post_attention_layernorm.weight", model.hidden_size),
            gate_up=self._gate_up(mlp),
            down=self._down(mlp),
        )

    def _qkv(self, prefix: str) -> LinearT:
        model, part = self._model, self._partition
        kv = (part.kv_heads, model.num_kv_heads)
        spans = {"q_proj": (part.q_heads, model.num_q_heads), "k_proj": kv, "v_proj": kv}
        parts = [
            (prefix + name, heads.times(model.head_size), num_heads * model.head_size)
            for name, (heads, num_heads) in spans.items()
        ]
        return self._column_parallel(parts, has_bias=model.qkv_bias)

    def _gate_up(self, prefix: str) -> LinearT:
        columns, total = self._partition.mlp_columns, self._model.intermediate_size
        parts = [(prefix + name, columns, total) for name in ("gate_proj", "up_proj")]
        return self._column_parallel(parts, has_bias=self._model.mlp_bias, is_gated=True)

    def _attention_output(self, prefix: str) -> LinearT:
        size = self._model.head_size
        columns, total = self._partition.q_heads.times(size), self._model.num_q_heads * size
        has_bias = self._model.output_bias
        return self._row_parallel(prefix + "o_proj", columns, total=total, has_bias=has_bias)

    def _down(self, prefix: str) -> LinearT:
        columns, total = self._partition.mlp_columns, self._model.intermediate_size
        has_bias = self._model.mlp_bias
        return self._row_parallel(prefix + "down_proj", columns, total=total, has_bias=has_bias)

    def _column_parallel(
        self, parts: Sequence[tuple[str, Span, int]], *, has_bias: bool, is_gated: bool = False
    ) -> LinearT:
        """Parts of the outputs of several layers with one input, as one: (name, rows, total)."""
        read, hidden, dtype = self._source.read, self._model.hidden_size, self._linear_dtype
        weight = torch.cat(
            [
                read(f"{name}.weight", (total, hidden), dtype=dtype, rows=rows)
                for name, rows, total in parts
            ]
        )
        bias = None
        if has_bias:
            biases = [self._read(f"{name}.bias", (total,), rows) for name, rows, total in parts]
            bias = torch.cat(biases)
        if not self._quantizes:
            return self._make_linear(weight, bias, is_gated=is_gated)
        return self._make_linear(quantize(weight, peaks_of(weight)), bias, is_gated=is_gated)

    def _row_parallel(self, name: str, columns: Span, *, total: int, has_bias: bool) -> LinearT:
        """Part of the inputs of a layer whose outputs the followers sum."""
        shape = (self._model.hidden_size, total)
        weight = self._source.read(
            f"{name}.weight", shape, dtype=self._linear_dtype, columns=columns
        )
        bias = self._vector(f"{name}.bias", shape[0]) if has_bias else None
        bias = bias if self._partition.adds_bias else None
        if not self._quantizes:
            return self._make_linear(weight, bias)
        peaks = self._source.row_peaks(f"{name}.weight", shape)
        return self._make_linear(quantize(weight, peaks), bias)

    def _vocab_rows(self, name: str) -> torch.Tensor:
        shape = (self._model.vocab_size, self._model.hidden_size)
        return self._read(name, shape, self._partition.vocab_rows)

    def _vector(self, name: str, size: int) -> torch.Tensor:
        return self._source.read(name, (size,), dtype=self._dtype)

    def _read(self, name: str, shape: tuple[int, ...], rows: Span) -> torch.Tensor:
        return self._source.read(name, shape, dtype=self._dtype, rows=rows)


def _linears(layer: LayerWeights[LinearT]) -> tuple[LinearT, ...]:
    return (layer.qkv, layer.output, layer.gate_up, layer.down)
