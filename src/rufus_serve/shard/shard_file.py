"""`ShardFile`: one follower's slices of a checkpoint in one safetensors file, cut beforehand.

Tensors keep the checkpoint's names and dtype; which part of the whole each one is stands in the
file's metadata. The bytes are those that the checkpoint itself would give. Beside a tensor that is
cut along its columns stand the peaks of its whole rows, which quantizing it takes.
"""

import functools
import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from rufus_serve.errors import ArtifactError
from rufus_serve.shard.checkpoint import Checkpoint
from rufus_serve.shard.linear import Linear
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition, Span
from rufus_serve.shard.weights import WeightLoader

SHARD_LAYOUT = 3
"""Version of these files; raised when the slices a follower reads change."""

_PEAKS = ".row_peaks"
"""What is added to a tensor's name."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Slice:
    """Rows and columns of one tensor; None takes all."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: Span | None = None
    columns: Span | None = None
    peaks_of: tuple[int, ...] = ()
    """Shape of the tensor whose row peaks these are, instead of a slice."""

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of the slice."""
        spans = (self.rows, self.columns if len(self.shape) > 1 else None)
        sizes = [total if span is None else span.size for total, span in zip(self.shape, spans)]  # noqa: B905 - vectors have no columns
        return tuple(sizes)

    def described(self) -> str:
        """What the file's metadata says of the slice."""
        spans = [None if span is None else [span.start, span.stop] for span in self._spans]
        return json.dumps([list(self.shape), *spans])

    @property
    def _spans(self) -> tuple[Span | None, Span | None]:
        return self.rows, self.columns


def slices_of(model: ModelConfig, partition: Partition, names: Container[str]) -> list[Slice]:
    """The slices that a follower reads of a checkpoint that holds `names`, in that order."""
    recorder = _Recorder(names)
    # float32 on no device: nothing is read, allocated or packed.
    loader = WeightLoader(
        recorder,
        model,
        partition=partition,
        dtype=torch.float32,
        make_linear=functools.partial(Linear, dtype=torch.float32),
        quantizes=True,
    )
    loader.load(lambda done, total, detail: None)  # noqa: ARG005 - the callback's signature
    return list({one.name: one for one in recorder.slices}.values())


def shard_bytes(slices: Sequence[Slice], checkpoint: Checkpoint) -> int:
    """Size of all slices as stored."""
    return sum(int(np.prod(one.part_shape)) * _dtype(checkpoint, one).itemsize for one in slices)


def write_shard(
    path: Path,
    checkpoint: Checkpoint,
    slices: Sequence[Slice],
    *,
    progress: Callable[[int, int, str], None],
) -> None:
    """Write `slices` to `path`, one after another; memory holds one at a time.

    Raises:
        ModelError: the checkpoint lacks a tensor, or has another shape than config.json implies.
    """
    head = _head(checkpoint, slices)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for index, one in enumerate(slices):
            part = _read(checkpoint, one)
            file.write(part.view(torch.uint8).numpy().tobytes())
            progress(index + 1, len(slices), one.name)


class ShardFile:
    """A `TensorSource` that holds only what one follower reads.

    Raises:
        ArtifactError: from the constructor and all methods; the file is damaged or was cut for
            another model or group.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self._metadata: dict[str, str] = self._file.metadata() or {}

    def __contains__(self, name: object) -> bool:
        return name in self._metadata

    def read(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        rows: Span | None = None,
        columns: Span | None = None,
    ) -> torch.Tensor:
        """The stored slice of `name`, which must be the one asked for."""
        wanted = Slice(name, tuple(shape), rows, columns).described()
        found = self._metadata.get(name)
        if found != wanted:
            self._refuse(f"tensor {name}: expected slice {wanted}, found {found or 'none'}")
        try:
            return torch.as_tensor(self._file.get_tensor(name)).to(dtype).contiguous()
        except SafetensorError as error:
            raise ArtifactError(f"{self._path}: tensor {name} cannot be read: {error}") from error

    def row_peaks(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """See `TensorSource.row_peaks`."""
        return self.read(name + _PEAKS, shape[:1], dtype=torch.float32)

    def dtype_of(self, name: str) -> str:
        """`name`'s stored dtype as safetensors writes it, for example BF16."""
        if name not in self._metadata:
            self._refuse(f"no tensor {name}")
        return str(self._file.get_slice(name).get_dtype())

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        self._file = None

    def _refuse(self, what: str) -> NoReturn:
        raise ArtifactError(
            f"{self._path}: {what}; it was cut for another model or number of nodes, "
            "make it again with 'rufus-serve compile'"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not a shard: {error}") from error


class _Recorder:
    """A `TensorSource` without data, which notes what is asked for."""

    def __init__(self, names: Container[str]) -> None:
        self.slices: list[Slice] = []
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def read(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        rows: Span | None = None,
        columns: Span | None = None,
    ) -> torch.Tensor:
        one = Slice(name, tuple(shape), rows, columns)
        self.slices.append(one)
        return torch.empty(one.part_shape, dtype=dtype, device="meta")

    def row_peaks(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        one = Slice(name + _PEAKS, tuple(shape[:1]), peaks_of=tuple(shape))
        self.slices.append(one)
        return torch.empty(one.shape, device="meta")

    def dtype_of(self, name: str) -> str:
        raise AssertionError(name)

    def close(self) -> None:
        """Nothing is open."""


def _read(checkpoint: Checkpoint, one: Slice) -> torch.Tensor:
    if one.peaks_of:
        return checkpoint.row_peaks(one.name.removesuffix(_PEAKS), one.peaks_of)
    dtype = _dtype(checkpoint, one)
    return checkpoint.read(one.name, one.shape, dtype=dtype, rows=one.rows, columns=one.columns)


def _dtype(checkpoint: Checkpoint, one: Slice) -> torch.dtype:
    stored = "F32" if one.peaks_of else checkpoint.dtype_of(one.name)
    # The checkpoint itself refuses other dtypes, by a message of its own.
    return _DTYPES.get(stored, torch.float32)


def _head(checkpoint: Checkpoint, slices: Sequence[Slice]) -> bytes:
    """The safetensors header: names, dtypes, shapes and offsets, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {one.name: one.described() for one in slices}}
    offset = 0
    for one in slices:
        dtype = _dtype(checkpoint, one)
        end = offset + int(np.prod(one.part_shape)) * dtype.itemsize
        entries[one.name] = {
            "dtype": next(name for name, known in _DTYPES.items() if known == dtype),
            "shape": list(one.part_shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
