"""The checkpoint: can its files be read, are they whole, and do they belong together?"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rufus_serve.config.model_folder import check_folder, check_tokenizer
from rufus_serve.doctor.context import Context, gib
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import ModelError
from rufus_serve.plan.model_shape import ModelShape, read_model_shape

_CODE = ModelError.exit_code
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit (safetensors, README)."""


def model(context: Context) -> Iterator[Finding]:
    """config.json, weights and tokenizer."""
    say = Findings("model")
    folder = Path(context.config.model)
    fix = f"huggingface-cli download REPOSITORY --local-dir {folder}"
    why = "leader and followers read the checkpoint on their own hosts, at this path"
    try:
        check_folder(folder)
        shape = read_model_shape(folder)
        _refuse(context, shape, folder)
        size = _check_weights(folder)
        if context.placement.is_leader:
            check_tokenizer(folder)
    except ModelError as error:
        yield say.error(str(error), why=why, fix=fix, code=_CODE)
        return
    params = f"{shape.num_params / 1e9:.2f} B parameters"
    yield say.ok(f"{folder}: {shape.model_type}, {params}, {gib(size)} of weights, all readable")


def _refuse(context: Context, shape: ModelShape, folder: Path) -> None:
    if shape.quantization:
        raise ModelError(
            f"{folder}: weights quantized with {shape.quantization!r} are not supported; "
            "use the unquantized checkpoint"
        )
    if shape.num_experts and context.config.runtime == "cpu":
        raise ModelError(f"{folder}: model type {shape.model_type!r} needs runtime neuron")


def _check_weights(folder: Path) -> int:
    """Bytes of all weight files, each opened and found whole; raises ModelError."""
    wanted = _wanted(folder)
    total = 0
    for name, tensors in wanted.items():
        path = folder / name
        missing = tensors - _tensors_in(path)
        if missing:
            raise ModelError(f"{path}: lacks tensor {min(missing)}, which {_INDEX} says it has")
        total += path.stat().st_size
    return total


def _wanted(folder: Path) -> dict[str, set[str]]:
    """Weight files with the tensors that the index expects in each."""
    index = folder / _INDEX
    if not index.exists():
        if not (folder / _SINGLE).exists():
            raise ModelError(
                f"{folder}: neither {_SINGLE} nor {_INDEX}; only safetensors weights are read"
            )
        return {_SINGLE: set()}
    try:
        pairs = json.loads(index.read_text())["weight_map"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a safetensors index: {error!r}") from error
    wanted: dict[str, set[str]] = {}
    for tensor, name in pairs:
        wanted.setdefault(str(name), set()).add(tensor)
    return wanted


def _tensors_in(path: Path) -> set[str]:
    """Names in a safetensors file whose size is what its header says; raises ModelError.

    The format: header length (8 bytes, little endian), a JSON header with each tensor's span of
    the data that follows, the data. Only the header is read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _MAX_HEADER_BYTES):
                raise ModelError(f"{path}: damaged: a header of {length} bytes in {size}")
            header = json.loads(file.read(length))
        ends = {name: _end(span) for name, span in header.items() if name != "__metadata__"}
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; the checkpoint is incomplete") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{path}: damaged: its header is no safetensors header") from error
    expected = 8 + length + max(ends.values(), default=0)
    if size != expected:
        raise ModelError(f"{path}: damaged: {size} bytes, its header wants {expected}")
    return set(ends)


def _end(span: Any) -> int:
    return int(span["data_offsets"][1])
