"""Messages to frames and back: msgpack with raw arrays, most often in a single frame.

    frame 0    u32 size of head | head (msgpack) | padding | small arrays, each padded to 8
    frame 1 …  one large array each

A frame costs more than the bytes in it (encryption, bookkeeping), so small arrays travel
together; copying large ones costs more than a frame, so they are sent where they lie. In the
head, (frame, offset in that frame's arrays, dtype, shape) stands for an array.

Decoded arrays are read-only views of their frame. Only the dtypes below exist on the wire, and
every size is checked, so malformed frames raise `CodecError` and nothing else. Bytes that no
field refers to are ignored: they belong to fields that this version does not know yet.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from rufus_serve.protocol.messages import AnyMessage, Array, Message

Frame = bytes | memoryview | bytearray

MAX_LARGE_ARRAYS = 16
MAX_DIMENSIONS = 4
MAX_HEAD_BYTES = 1 << 20
MAX_ARRAY_BYTES = 1 << 30
MAX_SMALL_BYTES = 1 << 16
"""Arrays up to this size share the first frame."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SIZE = struct.Struct("<I")
_ALIGNMENT = 8
_PADDING = [bytes(n) for n in range(_ALIGNMENT)]


class CodecError(ValueError):
    """Frames are not a message of this protocol, or a message does not fit into it."""


class _Call(threading.local):
    """Arrays of the call in progress, for msgspec's hooks; one coder serves all threads."""

    def __init__(self) -> None:
        self.small: list[Frame] = []
        self.small_bytes = 0
        self.large: list[Frame] = []
        self.received: list[memoryview] = []


_call = _Call()


def encode(message: Message) -> list[Frame]:
    """Frames of `message`; those of large arrays share their memory.

    Raises:
        CodecError: an array, or the message, is of a kind or size that is not sent.
    """
    call = _call
    call.small, call.small_bytes, call.large = [], 0, []
    try:
        head = _encoder.encode(message)
    except CodecError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"{type(message).__name__} cannot be sent: {error}") from error
    if len(head) > MAX_HEAD_BYTES or len(call.large) > MAX_LARGE_ARRAYS:
        raise CodecError(
            f"{type(message).__name__} with a head of {len(head)} bytes and {len(call.large)} "
            f"large arrays cannot be sent; at most {MAX_HEAD_BYTES} and {MAX_LARGE_ARRAYS}"
        )
    size = _SIZE.pack(len(head))
    if not call.small:
        return [size + head, *call.large]
    return [b"".join((size, head, _padding(len(size) + len(head)), *call.small)), *call.large]


def decode(frames: Sequence[Frame]) -> AnyMessage:
    """The message in `frames`.

    Raises:
        CodecError: the frames are not a well-formed message.
    """
    if not 1 <= len(frames) <= MAX_LARGE_ARRAYS + 1:
        raise CodecError(f"a message has 1 to {MAX_LARGE_ARRAYS + 1} frames, got {len(frames)}")
    first, *large = [memoryview(frame).toreadonly() for frame in frames]
    if first.nbytes < _SIZE.size:
        raise CodecError(f"a first frame of {first.nbytes} bytes")
    (head_bytes,) = _SIZE.unpack_from(first)
    head_end = _SIZE.size + head_bytes
    if head_end > first.nbytes or head_bytes > MAX_HEAD_BYTES:
        raise CodecError(f"a head of {head_bytes} bytes in a frame of {first.nbytes}")
    _call.received = [first[head_end + len(_padding(head_end)) :], *large]
    try:
        return _decoder.decode(first[_SIZE.size : head_end])
    # Beside its own errors, msgspec lets those of bad UTF-8, numbers and nesting through.
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"not a message: {error}") from error
    finally:
        _call.received = []


def _padding(size: int) -> bytes:
    return _PADDING[-size % _ALIGNMENT]


def _refer(value: object) -> tuple[int, int, str, tuple[int, ...]]:
    """Put an array into a frame; what stands for it in the head."""
    if not isinstance(value, np.ndarray):
        raise CodecError(f"{type(value).__name__} cannot be sent")
    name, size_bytes = _NAMES.get(value.dtype), value.nbytes
    if name is None or value.ndim > MAX_DIMENSIONS or size_bytes > MAX_ARRAY_BYTES:
        raise CodecError(
            f"array {value.shape} of {value.dtype} cannot be sent: at most {MAX_DIMENSIONS} "
            f"dimensions, {MAX_ARRAY_BYTES} bytes, of {', '.join(map(str, _NAMES))}"
        )
    if size_bytes > MAX_SMALL_BYTES:
        _call.large.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return (len(_call.large), 0, name, value.shape)
    offset = _call.small_bytes
    padding = _padding(size_bytes)
    _call.small += (value.tobytes(), padding)
    _call.small_bytes = offset + size_bytes + len(padding)
    return (0, offset, name, value.shape)


def _resolve(kind: type, value: Any) -> Array:  # noqa: ARG001 - msgspec's signature
    """The array that `value`, as of `_refer`, stands for."""
    try:
        index, offset, name, shape = value
        dtype = _DTYPES[name]
        # numpy itself would take negative sizes and offsets, and read beside the frame.
        size_bytes = _num_elements(index, offset, shape) * dtype.itemsize
        frame = _call.received[index]
    except (TypeError, ValueError, LookupError) as error:
        raise msgspec.ValidationError(f"bad array reference {value!r:.80}: {error}") from error
    room_bytes = frame.nbytes - offset
    if size_bytes > room_bytes or (index and size_bytes != room_bytes):
        raise msgspec.ValidationError(
            f"array reference {value!r:.80} does not match its frame of {frame.nbytes} bytes"
        )
    array: Array = np.ndarray(shape, dtype, frame, offset)
    # Neither msgpack nor ZeroMQ promises an aligned buffer; compute kernels expect one.
    return array if array.flags.aligned else _frozen_copy(array)


def _num_elements(index: Any, offset: Any, shape: Any) -> int:
    """Number of elements of `shape`.

    Raises:
        ValueError: a number is none, or is negative or absurd.
    """
    elements = 1
    for number in shape:
        if type(number) is not int or not 0 <= number <= MAX_ARRAY_BYTES:
            raise ValueError("bad shape")
        elements *= number
    if type(index) is not int or type(offset) is not int or index < 0 or offset < 0:
        raise ValueError("bad position")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError("too many dimensions")
    return elements


def _frozen_copy(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


_encoder = msgspec.msgpack.Encoder(enc_hook=_refer)
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(
    AnyMessage, dec_hook=_resolve
)
