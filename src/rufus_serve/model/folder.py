"""The folder that `model` names: what must lie in it, and what the model is called."""

import os
from pathlib import Path

from rufus_serve.errors import ModelError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_HUB_PREFIX = "models--"


def check_folder(folder: Path) -> None:
    """Raise `ModelError` unless `folder` is one."""
    if folder.is_dir():
        return
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder; give `model` a Hugging Face checkpoint folder")
    if folder.suffix == ".gguf":
        raise ModelError(
            f"{folder}: GGUF files are not read; give `model` a Hugging Face checkpoint folder "
            "with safetensors (transformers' from_pretrained(..., gguf_file=...) converts)"
        )
    raise ModelError(f"{folder}: a file; give `model` its folder, {folder.parent}")


def check_tokenizer(folder: Path) -> None:
    """Raise `ModelError` unless the leader will find a tokenizer in `folder`."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer; one of {', '.join(_TOKENIZERS)} is needed")


def model_name(folder: Path) -> str:
    """What the model in `folder` is called: org/name in the Hub's cache, else the folder's name."""
    # Not resolved: a link's name is the name that its maker chose.
    path = Path(os.path.abspath(folder))  # noqa: PTH100
    if path.parent.name == "snapshots" and path.parents[1].name.startswith(_HUB_PREFIX):
        return path.parents[1].name.removeprefix(_HUB_PREFIX).replace("--", "/")
    return path.name
