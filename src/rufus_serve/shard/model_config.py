"""`ModelConfig`: a decoder that the CPU model code can compute, from its config.json."""

from pathlib import Path

import msgspec

from rufus_serve.model.config_json import ConfigJson, read_config
from rufus_serve.model.shape import ModelShape, shape_of
from rufus_serve.shard.rope import RopeConfig, read_rope

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SUPPORTED_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")

_ACTIVATION_SYNONYMS = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"}


class ModelConfig(ModelShape, frozen=True, kw_only=True):
    """A decoder of the Llama family: its sizes, and how its layers compute."""

    rms_norm_eps: float
    activation: str
    rope: RopeConfig


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json.

    Raises:
        ModelError: there is none, it is damaged, or it describes a model not supported.
    """
    config = read_config(folder)
    model_type = config.raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        config.refuse(
            f"model type {model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    shape = shape_of(config)
    if shape.quantization:
        config.refuse(
            f"weights quantized with {shape.quantization!r} are not supported; "
            "use the unquantized checkpoint"
        )
    if shape.head_size % 2:
        config.refuse(f"head_dim must be even for rotary embedding, got {shape.head_size}")
    return ModelConfig(
        **msgspec.structs.asdict(shape),
        rms_norm_eps=float(config.raw.get("rms_norm_eps", 1e-6)),
        activation=_activation(config),
        rope=read_rope(config.raw),
    )


def _activation(config: ConfigJson) -> str:
    name = config.raw.get("hidden_act", "silu")
    name = _ACTIVATION_SYNONYMS.get(name, name)
    if name not in SUPPORTED_ACTIVATIONS:
        config.refuse(
            f"hidden_act {name!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_ACTIVATIONS)}"
        )
    return str(name)
