"""`ModelShape`: a decoder's sizes and parameter counts, from its config.json alone."""

from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.model.config_json import ConfigJson, read_config
from rufus_serve.model.rope import longest_context
from rufus_serve.model.windows import read_windows

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
    max_model_len: int
    """Longest sequence that the model was made for, rotary scaling included."""
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
    dtype: str = ""
    """Number format of the weights; empty if config.json does not say."""
    windows: tuple[int, ...] = ()
    """Sliding window of each layer in tokens; 0 sees the whole context."""

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
    return shape_of(read_config(path))


def shape_of(config: ConfigJson) -> ModelShape:
    """The shape that `config` describes.

    Raises:
        ModelError: it is of an architecture that is not known, or a size is none.
    """
    model_type = config.raw.get("model_type")
    if model_type not in MODEL_TYPES:
        config.refuse(f"model type {model_type!r} is not known; known are {', '.join(MODEL_TYPES)}")
    heads, kv_heads = _heads(config)
    hidden_size = config.count("hidden_size")
    # Qwen3's default does not follow from the hidden size.
    implied = _QWEN3_HEAD_SIZE if model_type.startswith("qwen3") else max(1, hidden_size // heads)
    return ModelShape(
        model_type=model_type,
        num_layers=config.count("num_hidden_layers"),
        hidden_size=hidden_size,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        head_size=config.count("head_dim", default=implied),
        intermediate_size=config.count("intermediate_size"),
        vocab_size=config.count("vocab_size"),
        max_model_len=longest_context(config.raw, config.count("max_position_embeddings")),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        quantization=_quantization(config),
        dtype=_dtype(config),
        windows=read_windows(config),
        **_options(config, model_type),
        **_experts(config, model_type),
    )


def _heads(config: ConfigJson) -> tuple[int, int]:
    heads = config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        config.refuse(
            "num_attention_heads % num_key_value_heads must be 0, but "
            f"{heads} % {kv_heads} = {heads % kv_heads}"
        )
    return heads, kv_heads


def _options(config: ConfigJson, model_type: str) -> dict[str, Any]:
    """Which biases and norms the architecture has."""
    takes_bias = model_type in ("llama", "qwen3", "qwen3_moe")
    bias = takes_bias and config.flag("attention_bias")
    return {
        "qkv_bias": bias or model_type == "qwen2",
        "output_bias": bias,
        "mlp_bias": model_type == "llama" and config.flag("mlp_bias"),
        "qk_norm": model_type.startswith("qwen3"),
    }


def _experts(config: ConfigJson, model_type: str) -> dict[str, Any]:
    if model_type not in _MOE_TYPES:
        return {}
    # Older files call it num_experts; transformers 5 writes num_local_experts.
    count_key = "num_experts" if "num_experts" in config.raw else "num_local_experts"
    size_key = "intermediate_size" if model_type == "mixtral" else "moe_intermediate_size"
    return {
        "num_experts": config.count(count_key),
        "experts_per_token": config.count("num_experts_per_tok"),
        "expert_size": config.count(size_key),
        "num_moe_layers": _num_moe_layers(config, model_type),
    }


def _num_moe_layers(config: ConfigJson, model_type: str) -> int:
    num_layers = config.count("num_hidden_layers")
    if model_type == "mixtral":
        return num_layers
    step = config.count("decoder_sparse_step", default=1)
    dense = set(config.raw.get("mlp_only_layers") or ())
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))


def _quantization(config: ConfigJson) -> str:
    section = config.raw.get("quantization_config")
    if not section:
        return ""
    return str(section.get("quant_method", "unknown")) if isinstance(section, dict) else "unknown"


def _dtype(config: ConfigJson) -> str:
    name = config.raw.get("dtype") or config.raw.get("torch_dtype") or ""
    return str(name).removeprefix("torch.")
