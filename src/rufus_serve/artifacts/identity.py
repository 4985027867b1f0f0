"""`Identity`: what artifacts were made from and for; its hash is their address."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.artifacts.checksum import fingerprint
from rufus_serve.model.config_json import read_config
from rufus_serve.model.weight_files import files_at_hand

_NOT_THE_MODEL = {"_name_or_path", "transformers_version"}
"""Keys of config.json that differ between copies of one model."""


class WeightFile(msgspec.Struct, frozen=True, kw_only=True):
    """One safetensors file of a checkpoint."""

    name: str
    size: int
    fingerprint: str


class ModelIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint."""

    config_sha256: str
    weights: tuple[WeightFile, ...]
    """Empty where only config.json is at hand; then weights are not compared."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Everything artifacts depend on."""

    model: ModelIdentity
    runtime: str
    num_nodes: int
    layout: int
    """Version of the files' own format, raised when an older one cannot be loaded."""
    settings: dict[str, Any] = {}
    """What is compiled in, in the words of the runtime."""
    versions: dict[str, str] = {}
    """Packages that make the artifacts."""
    draft: ModelIdentity | None = None
    """The draft model within, if there is one."""

    @property
    def key(self) -> str:
        """Name of the artifact folder: a hash of all fields."""
        text = json.dumps(_fields(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def identify_model(folder: Path) -> ModelIdentity:
    """The identity of the checkpoint in `folder`, with or without its weights.

    Raises:
        ModelError: config.json or the index cannot be read, or a weight file is missing.
    """
    raw = read_config(folder).raw
    kept = {key: value for key, value in raw.items() if key not in _NOT_THE_MODEL}
    text = json.dumps(kept, sort_keys=True)
    return ModelIdentity(
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
        weights=tuple(
            WeightFile(name=file.name, size=file.stat().st_size, fingerprint=fingerprint(file))
            for file in files_at_hand(folder)
        ),
    )


def differences(found: Identity, wanted: Identity) -> list[str]:
    """Each field in which `found` is not what is `wanted`, with both values."""
    theirs, ours = (_flat(_fields(identity)) for identity in (found, wanted))
    names = sorted(theirs.keys() | ours.keys())
    for part in ("model", "draft"):
        checkpoint: ModelIdentity | None = getattr(wanted, part)
        if checkpoint is not None and not checkpoint.weights:
            names = [name for name in names if not name.startswith(f"{part}.weights")]
    return [
        f"{name} is {_shown(theirs, name)}, wanted {_shown(ours, name)}"
        for name in names
        if theirs.get(name, _ABSENT) != ours.get(name, _ABSENT)
    ]


def _fields(identity: Identity) -> dict[str, Any]:
    """Without a draft as if there were no such field: keys of models without one stay."""
    fields: dict[str, Any] = msgspec.to_builtins(identity)
    return {name: value for name, value in fields.items() if value is not None}


_ABSENT = object()


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings and lists of mappings as one mapping with dotted names."""
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        value = {str(item["name"]): item for item in value}
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _shown(flat: Mapping[str, object], name: str) -> str:
    return repr(flat[name]) if name in flat else "absent"
