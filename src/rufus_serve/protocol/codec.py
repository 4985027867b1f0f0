"""Messages to frames and back: one msgpack frame, then one raw frame per array.

Arrays are never copied on encoding and are read-only views of the frame after decoding.
Only the dtypes below exist on the wire, and every size is checked, so a malformed frame
raises `CodecError` and nothing else.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from rufus_serve.protocol.messages import AnyMessage, Message

Frame = bytes | memoryview | bytearray

_DTYPES = {"i4": np.dtype("<i4"), "i8": np.dtype("<i8"), "f4": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_ARRAYS = 16


class CodecError(ValueError):
    """Frames are not a message of this protocol."""


def encode(message: Message) -> list[Frame]:
    """Frames of `message`; array frames share memory with the message's arrays."""
    arrays: list[Frame] = []

    def hook(value: object) -> object:
        if not isinstance(value, np.ndarray):
            raise CodecError(f"{type(value).__name__} cannot be sent")
        name = _NAMES.get(value.dtype)
        if name is None:
            raise CodecError(f"arrays of dtype {value.dtype} cannot be sent")
        arrays.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return (len(arrays), name, value.shape)

    head = msgspec.msgpack.Encoder(enc_hook=hook).encode(message)
    return [head, *arrays]


def decode(frames: Sequence[Frame]) -> AnyMessage:
    """The message in `frames`.

    Raises:
        CodecError: the frames are not a well-formed message.
    """
    if not 1 <= len(frames) <= _MAX_ARRAYS + 1:
        raise CodecError(f"a message has 1 to {_MAX_ARRAYS + 1} frames, got {len(frames)}")

    def hook(kind: type, value: Any) -> Any:  # noqa: ARG001 - msgspec's signature
        return _array(frames, value)

    try:
        return msgspec.msgpack.Decoder(AnyMessage, dec_hook=hook).decode(frames[0])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CodecError(f"not a message: {error}") from error


def _array(frames: Sequence[Frame], reference: Any) -> np.ndarray:
    """The array that `reference` = (frame index, dtype name, shape) describes."""
    try:
        index, name, shape = reference
        dtype = _DTYPES[name]
        sizes = [int(size) for size in shape]
        raw = memoryview(frames[index]).cast("B")
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise msgspec.ValidationError(f"bad array reference {reference!r}") from error
    if index < 1 or any(size < 0 for size in sizes) or len(sizes) > 4:
        raise msgspec.ValidationError(f"bad array reference {reference!r}")
    if math.prod(sizes) * dtype.itemsize != raw.nbytes:
        raise msgspec.ValidationError(f"array {sizes} of {name} in a frame of {raw.nbytes} bytes")
    array = np.frombuffer(raw, dtype=dtype).reshape(sizes)
    array.flags.writeable = False
    return array
