"""`ConfigJson`: a checkpoint's config.json, whose errors name the file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rufus_serve.errors import ModelError
from rufus_serve.model.folder import check_folder

CONFIG = "config.json"


@dataclass(frozen=True)
class ConfigJson:
    """The file as it is; what its keys mean is `ModelShape`'s to say."""

    path: Path
    raw: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the checkpoint's other files are."""
        return self.path.parent

    def count(self, key: str, *, default: int | None = None) -> int:
        """A whole number above 0; absent and null give `default`.

        Raises:
            ModelError: it is something else, or absent without a default.
        """
        value = self.raw.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(f"{key} must be a positive integer, got {value!r}")
        return value

    def flag(self, key: str) -> bool:
        """Whether `key` is set; absent and null are not."""
        return bool(self.raw.get(key, False))

    def refuse(self, what: str) -> NoReturn:
        """Raise ModelError: `what` is wrong with this file."""
        raise ModelError(f"{self.path}: {what}")


def read_config(path: Path) -> ConfigJson:
    """The config.json `path`, or that of the folder `path`.

    Raises:
        ModelError: there is none, or it holds no JSON object.
    """
    file = path
    if path.suffix != ".json":
        check_folder(path)
        file = path / CONFIG
    try:
        raw = json.loads(file.read_text())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: must hold a JSON object")
    return ConfigJson(file, raw)
