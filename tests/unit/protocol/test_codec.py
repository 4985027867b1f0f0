import contextlib
import enum
import struct
import threading
import types
from typing import Any, get_args, get_origin

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from recorded_messages import SAMPLES, TYPES, read_record

from rufus_serve.protocol import codec
from rufus_serve.protocol.codec import CodecError, decode, encode
from rufus_serve.protocol.messages import (
    AnyMessage,
    Candidates,
    ChosenTokens,
    Message,
    Refused,
    StepReply,
)

ARRAYS = npst.arrays(
    dtype=st.sampled_from([np.dtype("<i4"), np.dtype("<i8"), np.dtype("<f4"), np.dtype("<f8")]),
    shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Anything a field of this type may hold."""
    if annotation is np.ndarray:
        return ARRAYS
    if annotation is int:
        return st.integers(-(2**63), 2**64 - 1)
    if annotation is float:
        return st.floats(allow_nan=False)
    if annotation is str:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    if annotation is bool:
        return st.booleans()
    if annotation is type(None):
        return st.none()
    if isinstance(annotation, types.UnionType):
        return st.one_of([values_of(one) for one in get_args(annotation)])
    if get_origin(annotation) is tuple:
        return st.lists(values_of(get_args(annotation)[0]), max_size=3).map(tuple)
    if issubclass(annotation, enum.Enum):
        return st.sampled_from(annotation)
    return messages_of(annotation)


def messages_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(
        kind, **{field.name: values_of(field.type) for field in msgspec.structs.fields(kind)}
    )


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    elif isinstance(left, msgspec.Struct):
        for field in msgspec.structs.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    else:
        assert left == right


def reply(**arrays: Any) -> StepReply:
    return StepReply(step_id=1, epoch=1, node_rank=0, compute_s=0.0, **arrays)


def frames_of(*reference: Any, frames: tuple[bytes, ...] = (), tail: bytes = b"") -> list[bytes]:
    """A `StepReply` whose logits are referred to as told."""
    fields = {"type": "StepReply", "step_id": 1, "epoch": 1, "node_rank": 0, "compute_s": 0.0}
    head = msgspec.msgpack.encode({**fields, "logits": reference})
    padding = bytes(-(4 + len(head)) % 8)
    return [struct.pack("<I", len(head)) + head + padding + tail, *frames]


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_every_message_survives_the_wire(kind: type[AnyMessage]) -> None:
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(messages_of(kind))
    def survives(message: AnyMessage) -> None:
        assert_same(decode([bytes(frame) for frame in encode(message)]), message)

    survives()


@settings(max_examples=50, deadline=None)
@given(ARRAYS, st.integers(1, 5))
def test_strided_and_reversed_arrays_survive_the_wire(array: np.ndarray, stride: int) -> None:
    view = array[::-stride] if array.ndim else array
    decoded = decode(encode(reply(logits=view.T)))
    assert_same(decoded.logits, np.ascontiguousarray(view.T).reshape(view.T.shape))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * codec.MAX_SMALL_BYTES // 4), min_size=4, max_size=4))
def test_small_and_large_arrays_mix(sizes: list[int]) -> None:
    arrays = [np.arange(size, dtype=np.float32) for size in sizes]
    candidates = Candidates(
        logits=arrays[1], ids=arrays[2], log_totals=arrays[3], token_logits=arrays[3]
    )
    arrays.append(arrays[3])
    message = reply(logits=arrays[0], candidates=candidates)
    frames = encode(message)
    assert len(frames) == 1 + sum(array.nbytes > codec.MAX_SMALL_BYTES for array in arrays)
    assert_same(decode(frames), message)


def test_large_arrays_are_not_copied() -> None:
    array = np.zeros(codec.MAX_SMALL_BYTES, np.float32)
    frames = encode(reply(logits=array))
    array[0] = 1.0
    decoded = decode(frames)
    assert decoded.logits[0] == 1.0
    assert np.shares_memory(decoded.logits, array)


def test_decoded_arrays_are_read_only_and_aligned_whatever_the_buffer() -> None:
    (frame,) = encode(reply(logits=np.arange(10, dtype=np.float32)))
    for shift in range(8):
        buffer = bytearray(shift) + bytes(frame)
        logits = decode([memoryview(buffer)[shift:]]).logits
        assert logits.tolist() == list(range(10))
        assert logits.flags.aligned
        assert not logits.flags.writeable


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=20))
def test_arbitrary_bytes_raise_nothing_else(frames: list[bytes]) -> None:
    with pytest.raises(CodecError):
        decode(frames)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=64), max_size=3))
def test_an_arbitrary_head_raises_nothing_else(head: bytes, large: list[bytes]) -> None:
    with pytest.raises(CodecError):
        decode([struct.pack("<I", len(head)) + head, *large])


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 40),
)
def test_damaged_messages_decode_or_raise_codec_error(
    name: str, changes: list[tuple[int, int]], cut: int
) -> None:
    first, *large = (bytearray(frame) for frame in encode(SAMPLES[name]))
    for position, value in changes:
        first[position % len(first)] = value
    with contextlib.suppress(CodecError):
        decode([first[: len(first) - cut], *large])


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
junk = st.recursive(scalars | st.binary(), lambda inner: st.lists(inner, max_size=5), max_leaves=8)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(junk, max_size=5)
    | st.tuples(
        st.integers(-3, 3),
        st.integers(-10, 100),
        st.sampled_from(["i4", "i8", "f4", "f8", ""]),
        st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 5) | junk, max_size=6),
    )
)
def test_any_array_reference_decodes_within_its_frame_or_raises_codec_error(
    reference: Any,
) -> None:
    inside = b"\x5a" * 64
    try:
        logits = decode(frames_of(*reference, frames=(inside, b""), tail=inside)).logits
    except CodecError:
        return
    assert set(logits.tobytes()) <= {0x5A}, "read beside the frame"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(frames_of(0, 0, "f4", [17], tail=bytes(64)), id="longer than the tail"),
        pytest.param(frames_of(0, 4, "f4", [16], tail=bytes(64)), id="past the tail"),
        pytest.param(frames_of(0, -4, "f4", [1], tail=bytes(64)), id="before the tail"),
        pytest.param(frames_of(1, 0, "f4", [17], frames=(bytes(64),)), id="longer than its frame"),
        pytest.param(frames_of(1, 0, "f4", [15], frames=(bytes(64),)), id="shorter than its frame"),
        pytest.param(frames_of(2, 0, "f4", [16], frames=(bytes(64),)), id="of no frame"),
        pytest.param(frames_of(-1, 0, "f4", [16], frames=(bytes(64),)), id="of a negative frame"),
        pytest.param(frames_of(0, 0, "f2", [1], tail=bytes(64)), id="of another dtype"),
        pytest.param(frames_of(0, 0, "f4", [1] * 5, tail=bytes(64)), id="of five dimensions"),
        pytest.param(frames_of(0, 0, "f4", [-1], tail=bytes(64)), id="of negative size"),
        pytest.param(frames_of(0, 0, "f4", [2**62, 4], tail=bytes(64)), id="overflowing"),
        pytest.param([b"\x05\x00\x00\x00\x80"], id="head longer than its frame"),
        pytest.param([b"\x00" * 3], id="no room for a head size"),
        pytest.param([], id="no frames"),
        pytest.param([b""] * 40, id="too many frames"),
        pytest.param([struct.pack("<I", 1 << 21) + bytes(1 << 21)], id="oversize head"),
        pytest.param([struct.pack("<I", 90_000) + b"\x91" * 90_000], id="deeply nested"),
    ],
)
def test_what_does_not_match_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(CodecError):
        decode(frames)


def test_a_reference_that_matches_is_taken() -> None:
    assert decode(frames_of(0, 4, "i4", [3, 5], tail=bytes(64))).logits.shape == (3, 5)
    assert decode(frames_of(1, 0, "i8", [8], frames=(bytes(64),))).logits.shape == (8,)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.float16),
        np.zeros(3, ">i4"),
        np.array(["text"]),
        np.array([object()]),
        np.zeros((1,) * 5, np.int32),
        np.broadcast_to(np.zeros(1, np.float32), (1 << 29,)),
        object(),
    ],
    ids=lambda array: f"{type(array).__name__} {getattr(array, 'dtype', '')}",
)
def test_what_is_not_sent_is_refused_by_encode(array: Any) -> None:
    with pytest.raises(CodecError, match="cannot be sent"):
        encode(reply(logits=array))


def test_oversize_text_and_numbers_are_refused_by_encode() -> None:
    with pytest.raises(CodecError, match="Refused with a head of"):
        encode(Refused(reason="x" * (codec.MAX_HEAD_BYTES + 1)))
    with pytest.raises(CodecError, match="cannot be sent"):
        encode(StepReply(step_id=2**64, epoch=1, node_rank=0, compute_s=0.0))


def test_a_failed_call_leaves_nothing_behind() -> None:
    with pytest.raises(CodecError):
        encode(reply(logits=np.zeros(3, np.int32), candidates=np.zeros(3, np.float16)))
    message = reply(logits=np.ones(3, np.int32))
    assert_same(decode(encode(message)), message)


def test_frames_and_fields_of_a_newer_version_are_ignored() -> None:
    class Newer(Message, frozen=True, tag="StepFailed"):
        step_id: int
        epoch: int
        node_rank: int
        error: str
        traceback: np.ndarray
        core: np.ndarray

    newer = Newer(
        step_id=1,
        epoch=2,
        node_rank=3,
        error="e",
        traceback=np.zeros(3, np.int32),
        core=np.zeros(10**5, np.float32),
    )
    decoded = decode(encode(newer))
    assert (decoded.step_id, decoded.epoch, decoded.node_rank, decoded.error) == (1, 2, 3, "e")


def test_threads_do_not_mix_their_arrays() -> None:
    seen: dict[int, set[int]] = {}

    def work(number: int) -> None:
        message = reply(logits=np.full(50, number, np.int32))
        seen[number] = {int(decode(encode(message)).logits[0]) for _ in range(300)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {number: {number} for number in range(4)}


def test_chosen_tokens_travel_in_a_reply_that_older_peers_know() -> None:
    chosen = ChosenTokens(
        token_ids=np.array([[5, 6], [7, -1]], np.int32), num_accepted=np.array([2, 1], np.int32)
    )
    reply = StepReply(step_id=1, epoch=1, node_rank=0, compute_s=0.5, chosen=chosen)
    found = decode(encode(reply))
    assert isinstance(found, StepReply)
    assert_same(found, reply)
    assert decode(read_record()["StepReply"]).chosen is None  # type: ignore[union-attr]


@pytest.mark.parametrize("name", TYPES)
def test_recorded_frames_still_decode(name: str) -> None:
    assert_same(decode(read_record()[name]), SAMPLES[name])
