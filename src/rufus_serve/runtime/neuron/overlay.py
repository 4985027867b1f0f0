"""config.json as NxD Inference reads it right, in a folder beside the checkpoint's own.

NxD Inference 0.8 pins transformers 4.57, which does not know `rope_parameters` (written by
transformers 5) and would silently rotate with theta 10000.
"""

import json
import logging
from pathlib import Path
from typing import Any

from rufus_serve.model.config_json import CONFIG, ConfigJson
from rufus_serve.model.rope import per_layer_type, rope_kind, rope_settings
from rufus_serve.model.tying import EMBEDDING, OUTPUT, holds_both
from rufus_serve.model.weight_files import files_at_hand, stale_file, tensor_files

_log = logging.getLogger(__name__)


def config_overlay(config: ConfigJson) -> dict[str, Any]:
    """config.json as transformers 4.57 and NxD Inference 0.8 read it rightly.

    Raises:
        ModelError: it has rotary settings that they would misread, or ties the other way.
    """
    overlay = dict(config.raw)
    if "rope_parameters" in overlay:
        _rewrite_rope(config, overlay)
    # Whether a window ever closes is checked before; NxD Inference applies it to any architecture.
    if overlay.get("sliding_window") is not None and overlay.get("use_sliding_window", True):
        overlay["sliding_window"] = None
    if config.flag("tie_word_embeddings"):
        _rewrite_tying(config, overlay)
    return overlay


def _rewrite_rope(config: ConfigJson, overlay: dict[str, Any]) -> None:
    """Move `rope_parameters` to the keys of transformers 4."""
    rope = dict(rope_settings(config.raw))
    del overlay["rope_parameters"]
    names = per_layer_type(rope)
    if names:
        config.refuse(
            f"rope_parameters differ per layer type ({', '.join(names)}): NxD Inference 0.8 has "
            "one rotary setting for all layers; serve this model with runtime cpu"
        )
    overlay["rope_theta"] = rope.pop("rope_theta", overlay.get("rope_theta", 10000.0))
    if "partial_rotary_factor" in rope:
        overlay["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    overlay["rope_scaling"] = None if rope_kind(rope) == "default" else rope


def _rewrite_tying(config: ConfigJson, overlay: dict[str, Any]) -> None:
    """NxD Inference copies the embedding over the output layer, whatever the files hold."""
    if not files_at_hand(config.folder):
        return
    names = tensor_files(config.folder)
    if EMBEDDING not in names and OUTPUT in names:
        config.refuse(
            f"tie_word_embeddings with {OUTPUT} but no {EMBEDDING} in the weights: NxD Inference "
            "0.8 ties the other way only; serve this model with runtime cpu"
        )
    if holds_both(config.folder):
        _log.warning("%s ties %s, but the weights hold another one: not tied", config.path, OUTPUT)
        overlay["tie_word_embeddings"] = False


def write_overlay(config: ConfigJson, overlay: dict[str, Any], into: Path) -> Path:
    """A folder with `overlay` as config.json and links to the checkpoint's other files.

    The checkpoint itself if there is nothing in it that would be misread.
    """
    # NxD Inference prefers model.safetensors to the index.
    stale = stale_file(config.folder)
    if overlay == config.raw and stale is None:
        return config.folder
    into.mkdir(parents=True, exist_ok=True)
    for file in config.folder.resolve().iterdir():
        link = into / file.name
        left_out = (CONFIG, stale.name if stale else "")
        if file.name not in left_out and not link.exists():
            link.symlink_to(file)
    (into / CONFIG).write_text(json.dumps(overlay, indent=1))
    return into
