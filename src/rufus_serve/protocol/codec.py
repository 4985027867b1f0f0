"""Messages to frames and back: one msgpack frame, then one raw frame per array.

Arrays are never copied on encoding and are read-only views of the frame after decoding.
Only the dtypes below exist on the wire, and every size is checked, so a malformed frame
raises `CodecError` and nothing else. Frames that no field refers to are ignored: they belong
to fields that this version does not know yet.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from rufus_serve.protocol.messages import AnyMessage, Array, Message

Frame = bytes | memoryview | bytearray

MAX_ARRAYS = 16
MAX_DIMENSIONS = 4
MAX_HEAD_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 30

_DTYPES: dict[str, np.dtype[Any]] = {
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
    "f4": np.dtype("<f4"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CodecError(ValueError):
    """Frames are not a message of this protocol, or a message does not fit into it."""


class _Call(threading.local):
    """Frames of the call in progress, for msgspec's hooks; one coder serves all threads."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.received: Sequence[Frame] = ()


_call = _Call()


def encode(message: Message) -> list[Frame]:
    """Frames of `message`; array frames share memory with the message's arrays.

    Raises:
        CodecError: an array, or the message, is of a kind or size that is not sent.
    """
    arrays: list[Frame] = []
    _call.sent = arrays
    try:
        head = _encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"{type(message).__name__} cannot be sent: {error}") from error
    if len(head) > MAX_HEAD_BYTES or len(arrays) > MAX_ARRAYS:
        raise CodecError(
            f"{type(message).__name__} with a head of {len(head)} bytes and {len(arrays)} arrays "
            f"cannot be sent; at most {MAX_HEAD_BYTES} and {MAX_ARRAYS}"
        )
    return [head, *arrays]


def decode(frames: Sequence[Frame]) -> AnyMessage:
    """The message in `frames`.

    Raises:
        CodecError: the frames are not a well-formed message.
    """
    if not 1 <= len(frames) <= MAX_ARRAYS + 1:
        raise CodecError(f"a message has 1 to {MAX_ARRAYS + 1} frames, got {len(frames)}")
    if len(frames[0]) > MAX_HEAD_BYTES:
        raise CodecError(f"a head of {len(frames[0])} bytes, more than {MAX_HEAD_BYTES}")
    _call.received = frames
    try:
        return _decoder.decode(frames[0])
    # Beside its own errors, msgspec lets those of bad UTF-8, numbers and nesting through.
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"not a message: {error}") from error
    finally:
        _call.received = ()


def _refer(value: object) -> tuple[int, str, tuple[int, ...]]:
    """Put an array into a frame of its own; what stands for it in the head."""
    if not isinstance(value, np.ndarray):
        raise CodecError(f"{type(value).__name__} cannot be sent")
    name = _NAMES.get(value.dtype)
    if name is None or value.ndim > MAX_DIMENSIONS or value.nbytes > MAX_ARRAY_BYTES:
        raise CodecError(
            f"array {value.shape} of {value.dtype} cannot be sent: at most {MAX_DIMENSIONS} "
            f"dimensions, {MAX_ARRAY_BYTES} bytes, of {', '.join(map(str, _NAMES))}"
        )
    frame = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b""
    _call.sent.append(frame)
    return (len(_call.sent), name, value.shape)


def _resolve(kind: type, value: Any) -> Array:  # noqa: ARG001 - msgspec's signature
    """The array that `value` = (frame index, dtype name, shape) stands for."""
    match value:
        case [int(index), str(name), [*shape]] if (
            0 < index < len(_call.received) and name in _DTYPES and _is_shape(shape)
        ):
            return _array(_call.received[index], _DTYPES[name], shape)
    raise msgspec.ValidationError(f"bad array reference {value!r:.80}")


def _is_shape(shape: list[Any]) -> bool:
    sizes_fit = all(type(size) is int and 0 <= size <= MAX_ARRAY_BYTES for size in shape)
    return sizes_fit and len(shape) <= MAX_DIMENSIONS


def _array(frame: Frame, dtype: np.dtype[Any], shape: list[int]) -> Array:
    raw = memoryview(frame)
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes != raw.nbytes or size_bytes > MAX_ARRAY_BYTES:
        raise msgspec.ValidationError(f"array {shape} of {dtype} in a frame of {raw.nbytes} bytes")
    array = np.frombuffer(raw, dtype=dtype) if size_bytes else np.empty(0, dtype=dtype)
    if not array.flags.aligned:
        array = array.copy()
    array = array.reshape(shape)
    array.flags.writeable = False
    return cast(Array, array)


_encoder = msgspec.msgpack.Encoder(enc_hook=_refer)
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(
    AnyMessage, dec_hook=_resolve
)
