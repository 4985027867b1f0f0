"""What must lie in the folder that `model` names, for everyone who reads it."""

from pathlib import Path

from rufus_serve.errors import ModelError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check_folder(folder: Path) -> None:
    """Raise `ModelError` unless `folder` is there."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give `model` a Hugging Face checkpoint folder")


def check_tokenizer(folder: Path) -> None:
    """Raise `ModelError` unless the leader will find a tokenizer in `folder`."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"{folder}: no tokenizer; one of {', '.join(_TOKENIZERS)} is needed")
