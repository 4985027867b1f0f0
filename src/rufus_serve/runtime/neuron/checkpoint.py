"""The checkpoint's config.json: what the runtime needs of it, and how NxD Inference reads it right.

NxD Inference 0.8 pins transformers 4.57, which does not know `rope_parameters` (written by
transformers 5) and would silently rotate with theta 10000.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rufus_serve.errors import ModelError

_ROPE_DEFAULTS = ("default", None)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a Hugging Face checkpoint."""

    folder: Path
    raw: dict[str, Any]

    @classmethod
    def read(cls, folder: str) -> "Checkpoint":
        """The checkpoint in `folder`.

        Raises:
            ModelError: there is no readable config.json with the keys of a decoder.
        """
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} cannot be read ({error}); give a checkpoint folder"
            ) from error
        missing = [key for key in _REQUIRED if not isinstance(raw.get(key), int)]
        if missing:
            raise ModelError(f"{path} lacks {', '.join(missing)}; is it a decoder's checkpoint?")
        return cls(Path(folder), raw)

    @property
    def architecture(self) -> str:
        """First entry of `architectures`, or what `model_type` stands for."""
        names = self.raw.get("architectures") or [self.raw.get("model_type", "")]
        return str(names[0])

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return int(self.raw["num_attention_heads"])

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.raw.get("num_key_value_heads") or self.num_heads)

    @property
    def head_size(self) -> int:
        """Size of one head."""
        return int(self.raw.get("head_dim") or self.raw["hidden_size"] // self.num_heads)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.raw["vocab_size"])

    @property
    def max_positions(self) -> int:
        """Tokens that the model was made for."""
        return int(self.raw["max_position_embeddings"])

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "bfloat16")

    @property
    def weights_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


_REQUIRED = (
    "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def config_overlay(checkpoint: Checkpoint, max_model_len: int) -> dict[str, Any]:
    """config.json as transformers 4.57 and NxD Inference 0.8 read it rightly.

    Raises:
        ModelError: it has rotary or window settings that they would misread.
    """
    config = dict(checkpoint.raw)
    _rewrite_rope(config)
    window = config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", True):
        if window < max_model_len:
            raise ModelError(
                f"sliding_window {window} < max_model_len {max_model_len}: windowed attention is "
                f"not supported by runtime neuron; set max_model_len to {window} or less"
            )
        config["sliding_window"] = None
    return config


def _rewrite_rope(config: dict[str, Any]) -> None:
    """Move `rope_parameters` to the keys of transformers 4."""
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return
    if any(isinstance(value, dict) for value in rope.values()):
        raise ModelError(
            f"rope_parameters differ per layer type ({', '.join(rope)}): NxD Inference 0.8 has one "
            "rotary setting for all layers; serve this model with runtime cpu"
        )
    rest = dict(rope)
    config["rope_theta"] = rest.pop("rope_theta", config.get("rope_theta", 10000.0))
    if "partial_rotary_factor" in rest:
        config["partial_rotary_factor"] = rest.pop("partial_rotary_factor")
    scaled = rest.get("rope_type", rest.get("type")) not in _ROPE_DEFAULTS
    config["rope_scaling"] = rest if scaled else None


def write_overlay(checkpoint: Checkpoint, config: dict[str, Any], into: Path) -> Path:
    """A folder with `config` as config.json and links to the checkpoint's other files.

    The checkpoint itself if `config` is its own.
    """
    if config == checkpoint.raw:
        return checkpoint.folder
    into.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.folder.resolve().iterdir():
        link = into / file.name
        if file.name != "config.json" and not link.exists():
            link.symlink_to(file)
    (into / "config.json").write_text(json.dumps(config, indent=1))
    return into
