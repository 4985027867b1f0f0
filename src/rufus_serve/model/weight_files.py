"""The safetensors files of a checkpoint: which there are, and which tensors they hold.

The format: the header's length (8 bytes, little endian), a JSON header with each tensor's dtype,
shape and span of the data that follows, the data.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.errors import ModelError
from rufus_serve.model.folder import check_folder

INDEX = "model.safetensors.index.json"

_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (safetensors, README)."""


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor, by its file's header."""

    dtype: str
    """As safetensors writes it, for example BF16."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    stop: int
    """The byte after the last."""


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file to read each tensor from; where several hold it, the index decides.

    Raises:
        ModelError: there are no weights, or index or file are damaged.
    """
    check_folder(folder)
    if (folder / INDEX).exists():
        return _read_index(folder / INDEX)
    if (folder / _SINGLE).exists():
        return dict.fromkeys(read_header(folder / _SINGLE), folder / _SINGLE)
    raise ModelError(f"{folder}: neither {_SINGLE} nor {INDEX}; only safetensors weights are read")


def _read_index(index: Path) -> dict[str, Path]:
    try:
        pairs = json.loads(index.read_text())["weight_map"].items()
        names = {str(tensor): str(name) for tensor, name in pairs}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a safetensors index: {error!r}") from error
    outside = sorted(name for name in set(names.values()) if Path(name).name != name)
    if outside:
        raise ModelError(f"{index}: names files outside of its folder: {outside}")
    return {tensor: index.parent / name for tensor, name in names.items()}


def files_at_hand(folder: Path) -> list[Path]:
    """The files that make up the checkpoint; none where only config.json was copied.

    Raises:
        ModelError: some are there and others are missing, or the index is damaged.
    """
    single, index = folder / _SINGLE, folder / INDEX
    files = sorted(set(_read_index(index).values())) if index.exists() else [single]
    missing = [file for file in files if not file.exists()]
    if len(missing) == len(files):
        return []
    if missing:
        raise ModelError(f"{missing[0]}: missing; the checkpoint is incomplete")
    return files


def weights_bytes(folder: Path) -> int:
    """Size of the files at hand. Raises as `files_at_hand`."""
    return sum(file.stat().st_size for file in files_at_hand(folder))


def stale_file(folder: Path) -> Path | None:
    """A model.safetensors that is not read, since the index beside it does not name it."""
    single, index = folder / _SINGLE, folder / INDEX
    if not index.exists() or not single.exists():
        return None
    return None if single in _read_index(index).values() else single


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file whose size is what its header says; only the header is read.

    Raises:
        ModelError: the file is missing, unreadable or damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _MAX_HEADER_BYTES):
                raise ModelError(f"{path}: damaged: a header of {length} bytes in {size}")
            entries = json.loads(file.read(length)).items()
        start = 8 + length
        tensors = {name: _stored(one, start) for name, one in entries if name != "__metadata__"}
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; the checkpoint is incomplete") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: damaged: its header is no safetensors header") from error
    expected = max((one.stop for one in tensors.values()), default=start)
    if size != expected:
        raise ModelError(f"{path}: damaged: {size} bytes, its header wants {expected}")
    return tensors


def _stored(entry: Mapping[str, Any], start: int) -> StoredTensor:
    first, end = entry["data_offsets"]
    return StoredTensor(
        dtype=str(entry["dtype"]),
        shape=tuple(entry["shape"]),
        start=start + int(first),
        stop=start + int(end),
    )
