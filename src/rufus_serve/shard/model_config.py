"""`ModelConfig`: what a checkpoint's config.json says of its decoder, checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rufus_serve.config.model_folder import check_folder
from rufus_serve.errors import ModelError
from rufus_serve.shard.rope import RopeConfig, read_rope

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SUPPORTED_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")

_ACTIVATION_SYNONYMS = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}
_DEFAULT_MISTRAL_WINDOW = 4096


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    activation: str
    rope: RopeConfig
    dtype: str
    """float32, bfloat16 or float16; empty if config.json does not say."""
    windows: tuple[int, ...]
    """Sliding window of each layer in tokens; 0 sees the whole context."""
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json.

    Raises:
        ModelError: there is none, it is damaged, or it describes a model not supported.
    """
    raw = _read_json(folder)
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ModelError(
            f"{folder}: model type {model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    _refuse_quantized(folder, raw)
    num_q_heads = _count(raw, "num_attention_heads")
    return ModelConfig(
        model_type=str(model_type),
        hidden_size=_count(raw, "hidden_size"),
        intermediate_size=_count(raw, "intermediate_size"),
        num_layers=_count(raw, "num_hidden_layers"),
        num_q_heads=num_q_heads,
        num_kv_heads=_count(raw, "num_key_value_heads", default=num_q_heads),
        head_size=_head_size(raw, num_q_heads),
        vocab_size=_count(raw, "vocab_size"),
        max_position_embeddings=_count(raw, "max_position_embeddings"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        activation=_activation(raw),
        rope=read_rope(raw),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "").removeprefix("torch."),
        windows=_windows(raw),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        **_options(raw),
    )


def _options(raw: Mapping[str, Any]) -> dict[str, bool]:
    """Which biases and norms the architecture has."""
    model_type, attention_bias = raw["model_type"], bool(raw.get("attention_bias", False))
    has_attention_bias = attention_bias and model_type in ("llama", "qwen3")
    return {
        "qkv_bias": has_attention_bias or model_type == "qwen2",
        "output_bias": has_attention_bias,
        "mlp_bias": model_type == "llama" and bool(raw.get("mlp_bias", False)),
        "qk_norm": model_type == "qwen3",
    }


def _read_json(folder: Path) -> dict[str, Any]:
    check_folder(folder)
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return raw


def _refuse_quantized(folder: Path, raw: Mapping[str, Any]) -> None:
    quantization = raw.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
    raise ModelError(
        f"{folder}: weights quantized with {method!r} are not supported; "
        "use the unquantized checkpoint"
    )


def _count(raw: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def _head_size(raw: Mapping[str, Any], num_q_heads: int) -> int:
    # Qwen3Config's default, which does not follow from the hidden size.
    implied = 128 if raw["model_type"] == "qwen3" else _count(raw, "hidden_size") // num_q_heads
    head_size = _count(raw, "head_dim", default=implied)
    if head_size % 2:
        raise ModelError(
            f"config.json: head_dim must be even for rotary embedding, got {head_size}"
        )
    return head_size


def _activation(raw: Mapping[str, Any]) -> str:
    name = raw.get("hidden_act", "silu")
    name = _ACTIVATION_SYNONYMS.get(name, name)
    if name not in SUPPORTED_ACTIVATIONS:
        raise ModelError(
            f"config.json: hidden_act {name!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_ACTIVATIONS)}"
        )
    return str(name)


def _windows(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The sliding window of each layer, by the rules of its architecture."""
    num_layers = _count(raw, "num_hidden_layers")
    if raw["model_type"] == "mistral":
        window = raw.get("sliding_window", _DEFAULT_MISTRAL_WINDOW)
        return (_window_size(window),) * num_layers
    if raw["model_type"] == "llama" or not raw.get("use_sliding_window", False):
        return (0,) * num_layers
    window = _window_size(raw.get("sliding_window"))
    return tuple(window if is_sliding else 0 for is_sliding in _sliding_layers(raw, num_layers))


def _sliding_layers(raw: Mapping[str, Any], num_layers: int) -> list[bool]:
    layer_types = raw.get("layer_types")
    if layer_types is None:
        first = _count({"max_window_layers": 28, **raw}, "max_window_layers")
        return [index >= first for index in range(num_layers)]
    known = {"full_attention", "sliding_attention"}
    if len(layer_types) != num_layers or not known.issuperset(layer_types):
        raise ModelError(
            f"config.json: layer_types must name {num_layers} times one of "
            f"{', '.join(sorted(known))}, got {layer_types}"
        )
    return [kind == "sliding_attention" for kind in layer_types]


def _window_size(window: object) -> int:
    if window is None:
        return 0
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ModelError(f"config.json: sliding_window must be a positive integer, got {window!r}")
    return window
