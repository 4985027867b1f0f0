"""`Checkpoint`: slices of tensors in a folder of safetensors files, read one by one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rufus_serve.errors import ModelError
from rufus_serve.shard.partition import Span

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOAT_DTYPES = ("F32", "BF16", "F16")


class Checkpoint:
    """Read access to the tensors of `folder`; only the bytes asked for are read.

    Raises:
        ModelError: from the constructor and all methods; names the file or tensor at fault.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {path: _open(path) for path in _weight_files(folder)}
        self._path_of = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return name in self._path_of

    def close(self) -> None:
        """Let go of the files; may be called twice."""
        self._files.clear()

    def dtype_of(self, name: str) -> str:
        """`name`'s stored dtype as safetensors writes it, for example BF16."""
        return str(self._slice(name).get_dtype())

    def read(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        rows: Span | None = None,
        columns: Span | None = None,
    ) -> torch.Tensor:
        """Part of tensor `name`, whose whole must have `shape`, converted to `dtype`."""
        stored = self._slice(name)
        path = self._path_of[name]
        if list(stored.get_shape()) != list(shape):
            raise ModelError(
                f"{path}: tensor {name} has shape {list(stored.get_shape())}, "
                f"but config.json implies {list(shape)}"
            )
        if stored.get_dtype() not in _FLOAT_DTYPES:
            raise ModelError(
                f"{path}: tensor {name} is stored as {stored.get_dtype()}; "
                f"supported are {', '.join(_FLOAT_DTYPES)}"
            )
        spans = (rows or Span(0, shape[0]), columns or Span(0, shape[-1]))[: len(shape)]
        try:
            part = stored[tuple(slice(span.start, span.stop) for span in spans)]
        except SafetensorError as error:
            raise ModelError(f"{path}: tensor {name} cannot be read: {error}") from error
        return torch.as_tensor(part).to(dtype).contiguous()

    def _slice(self, name: str) -> Any:
        path = self._path_of.get(name)
        if path is None:
            raise ModelError(f"{self._folder}: no tensor {name} in the checkpoint")
        return self._files[path].get_slice(name)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint."""
    index = folder / _INDEX
    if not index.exists():
        if not (folder / _SINGLE).exists():
            raise ModelError(
                f"{folder}: neither {_SINGLE} nor {_INDEX}; only safetensors weights are read"
            )
        return [folder / _SINGLE]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a safetensors index: {error!r}") from error
    if any(Path(str(name)).name != name for name in names):
        raise ModelError(f"{index}: names files outside of its folder: {sorted(map(str, names))}")
    return [folder / name for name in sorted(names)]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; the checkpoint is incomplete") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or not a safetensors file: {error}") from error
