"""`ModelShape`: a decoder's sizes and parameter counts, from its config.json alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.errors import ModelError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")

_MOE_TYPES = ("mixtral", "qwen3_moe")
_QWEN3_HEAD_SIZE = 128


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a decoder; parameters are counted as the checkpoint holds them."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_q_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    """Columns of one expert's inner layer."""
    num_moe_layers: int = 0
    quantization: str = ""
    """How the checkpoint's own weights are quantized; empty if they are not."""

    @property
    def num_dense_layers(self) -> int:
        """Layers with an ordinary MLP."""
        return self.num_layers - self.num_moe_layers

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention, its own norms included."""
        q_width = self.num_q_heads * self.head_size
        kv_width = self.num_kv_heads * self.head_size
        count = 2 * self.hidden_size * (q_width + kv_width)
        count += (q_width + 2 * kv_width) * self.qkv_bias
        count += self.hidden_size * self.output_bias
        return count + 2 * self.head_size * self.qk_norm

    @property
    def mlp_params(self) -> int:
        """Parameters of one ordinary MLP."""
        bias = (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        return 3 * self.hidden_size * self.intermediate_size + bias

    @property
    def expert_params(self) -> int:
        """Parameters of one expert."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def router_params(self) -> int:
        """Parameters of one layer's router."""
        return self.hidden_size * self.num_experts

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding; the output layer has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def num_params(self) -> int:
        """Parameters of the whole model."""
        layers = self.num_layers * (self.attention_params + 2 * self.hidden_size)
        layers += self.num_dense_layers * self.mlp_params
        moe_layer = self.num_experts * self.expert_params + self.router_params
        layers += self.num_moe_layers * moe_layer
        return layers + self.hidden_size + self.embedding_params * (2 - self.tie_word_embeddings)

    @property
    def num_matmul_params(self) -> int:
        """Parameters that one token is multiplied with; all but the embedding and idle experts."""
        idle = self.num_moe_layers * (self.num_experts - self.experts_per_token)
        tied = self.embedding_params * self.tie_word_embeddings
        return self.num_params + tied - self.embedding_params - idle * self.expert_params


def read_model_shape(path: Path) -> ModelShape:
    """The shape in `path`, a config.json or the folder that holds one.

    Raises:
        ModelError: there is none, or it is of an architecture that is not known.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: must hold a JSON object")
    try:
        return _shape(raw)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _shape(raw: Mapping[str, Any]) -> ModelShape:
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"model type {model_type!r} is not known; known are {', '.join(MODEL_TYPES)}"
        )
    heads = _count(raw, "num_attention_heads")
    kv_heads = _count(raw, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ModelError(
            "num_attention_heads % num_key_value_heads must be 0, but "
            f"{heads} % {kv_heads} = {heads % kv_heads}"
        )
    hidden = _count(raw, "hidden_size")
    implied = _QWEN3_HEAD_SIZE if model_type.startswith("qwen3") else max(1, hidden // heads)
    return ModelShape(
        model_type=model_type,
        num_layers=_count(raw, "num_hidden_layers"),
        hidden_size=hidden,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        head_size=_count(raw, "head_dim", default=implied),
        intermediate_size=_count(raw, "intermediate_size"),
        vocab_size=_count(raw, "vocab_size"),
        max_position_embeddings=_count(raw, "max_position_embeddings"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        quantization=_quantization(raw),
        **_options(raw, model_type),
        **_experts(raw, model_type),
    )


def _options(raw: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Which biases and norms the architecture has."""
    takes_bias = model_type in ("llama", "qwen3", "qwen3_moe")
    bias = takes_bias and bool(raw.get("attention_bias", False))
    return {
        "qkv_bias": bias or model_type == "qwen2",
        "output_bias": bias,
        "mlp_bias": model_type == "llama" and bool(raw.get("mlp_bias", False)),
        "qk_norm": model_type.startswith("qwen3"),
    }


def _experts(raw: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    if model_type not in _MOE_TYPES:
        return {}
    # Older files call it num_experts; transformers 5 writes num_local_experts.
    count_key = "num_experts" if "num_experts" in raw else "num_local_experts"
    size_key = "intermediate_size" if model_type == "mixtral" else "moe_intermediate_size"
    return {
        "num_experts": _count(raw, count_key),
        "experts_per_token": _count(raw, "num_experts_per_tok"),
        "expert_size": _count(raw, size_key),
        "num_moe_layers": _num_moe_layers(raw, model_type),
    }


def _num_moe_layers(raw: Mapping[str, Any], model_type: str) -> int:
    num_layers = _count(raw, "num_hidden_layers")
    if model_type == "mixtral":
        return num_layers
    step = _count(raw, "decoder_sparse_step", default=1)
    dense = set(raw.get("mlp_only_layers") or ())
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))


def _quantization(raw: Mapping[str, Any]) -> str:
    section = raw.get("quantization_config")
    if not section:
        return ""
    return str(section.get("quant_method", "unknown")) if isinstance(section, dict) else "unknown"


def _count(raw: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{key} must be a positive integer, got {value!r}")
    return value
