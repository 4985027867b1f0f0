"""`Checkpoint`: slices of tensors in a folder of safetensors files, read one by one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rufus_serve.errors import ModelError
from rufus_serve.kernels.int8 import peaks_of
from rufus_serve.model.weight_files import INDEX, stale_file, tensor_files
from rufus_serve.shard.partition import Span

_FLOAT_DTYPES = ("F32", "BF16", "F16")
_PEAK_ROWS = 1024

_log = logging.getLogger(__name__)


class Checkpoint:
    """Read access to the tensors of `folder`; only the bytes asked for are read.

    Raises:
        ModelError: from the constructor and all methods; names the file or tensor at fault.
    """

    def __init__(self, folder: Path) -> None:
        self._path_of = tensor_files(folder)
        self._files = {path: _open(path) for path in sorted(set(self._path_of.values()))}
        self._folder = folder
        stale = stale_file(folder)
        if stale:
            _log.warning("%s is not read: %s beside it does not name it", stale, INDEX)

    def __contains__(self, name: object) -> bool:
        return name in self._path_of

    def close(self) -> None:
        """Let go of the files; may be called twice."""
        self._files.clear()

    def dtype_of(self, name: str) -> str:
        """`name`'s stored dtype as safetensors writes it, for example BF16."""
        return str(self._slice(name).get_dtype())

    def row_peaks(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """See `TensorSource.row_peaks`; some rows are in memory at a time."""
        peaks = torch.empty(shape[0])
        for start in range(0, shape[0], _PEAK_ROWS):
            rows = Span(start, min(start + _PEAK_ROWS, shape[0]))
            part = self.read(name, shape, dtype=torch.float32, rows=rows)
            peaks[rows.start : rows.stop] = peaks_of(part)
        return peaks

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
        try:
            return self._files[path].get_slice(name)
        except SafetensorError as error:
            raise ModelError(f"{path}: lacks tensor {name}, which {INDEX} says it has") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; the checkpoint is incomplete") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or not a safetensors file: {error}") from error
