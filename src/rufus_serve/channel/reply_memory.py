"""Memory in which a follower leaves large replies for a leader on the same host.

A note of each still goes through the socket, so that order, deadlines and losses stay the
socket's: a reply is read only once its note has come, and a follower that dies while it writes
sends none. One writer, one reader, a ring of records:

    0     16 bytes by which the reader knows that it opened the right memory
    64    u64, bytes that the reader is done with
    4096  records: u64 sequence | u64 size | u64 checksum, 0 without | payload
"""

import errno
import fcntl
import mmap
import os
import platform
import secrets
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from rufus_serve.errors import EndpointError
from rufus_serve.protocol.codec import Frame
from rufus_serve.protocol.messages import ReplyMemory, StoredReply

CAPACITY_BYTES = 64 << 20
"""Room for 128 rows of 128,256 logits; pages come as they are first written."""
_NAME = "rufus-serve-replies"
_SECRET_BYTES = 16
_DONE = 64 // 8
_DATA = 4096
_RECORD = struct.Struct("<QQQ")
_RECORD_ALIGNMENT = 64
_FRAME_ALIGNMENT = 8
# The reader's mark must not be seen before its reads are done, which Arm does not promise.
_ORDERED = ("x86_64", "AMD64")
# A file that shrank would end the reader by SIGBUS.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TornReply(Exception):
    """What lies in the memory is not what its note says."""


class _Ring:
    """The memory as each side maps it."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self.capacity = capacity
        self._bytes = memoryview(mmap.mmap(descriptor, _DATA + capacity))
        # A memoryview stores 8 aligned bytes with one instruction and reads them afresh.
        self.counters = self._bytes[:_DATA].cast("Q")
        self.secret = self._bytes[:_SECRET_BYTES]

    def at(self, cursor: int, size: int) -> memoryview:
        start = _DATA + cursor % self.capacity
        return self._bytes[start : start + size]

    def close(self) -> None:
        for view in (self.secret, self.counters, self._bytes):
            view.release()


class ReplyWriter:
    """The follower's side, for one leader; used by one thread."""

    def __init__(self, *, capacity: int = CAPACITY_BYTES, checksums: bool = False) -> None:
        """Raises OSError where memory cannot be shared so."""
        if sys.platform != "linux" or platform.machine() not in _ORDERED:
            raise OSError(errno.ENOSYS, "memory is shared on Linux x86-64 alone")
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, _DATA + capacity)
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._ring = _Ring(self._descriptor, capacity)
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._ring.secret[:] = self._secret
        self._checksums = checksums
        self._written = 0
        self._sequence = 0

    def offer(self) -> ReplyMemory:
        """How the leader finds the memory."""
        return ReplyMemory(
            boot_id=_boot_id(),
            path=f"/proc/{os.getpid()}/fd/{self._descriptor}",
            secret=self._secret.hex(),
            capacity=self._ring.capacity,
        )

    def put(self, frames: Sequence[Frame], *, epoch: int) -> StoredReply | None:
        """Leave `frames` for the leader; the note to send it, None if there is no room now."""
        sizes = tuple(memoryview(frame).nbytes for frame in frames)
        *starts, size = _layout(sizes)
        record_bytes = _padded(_RECORD.size + size, _RECORD_ALIGNMENT)
        place = _in_one_piece(self._written, record_bytes, self._ring.capacity)
        if place + record_bytes - self._ring.counters[_DONE] > self._ring.capacity:
            return None
        self._sequence += 1
        record = self._ring.at(place, _RECORD.size + size)
        payload = record[_RECORD.size :]
        for frame, start, length in zip(frames, starts, sizes, strict=True):
            payload[start : start + length] = memoryview(frame).cast("B")
        checksum = zlib.crc32(payload) if self._checksums else 0
        _RECORD.pack_into(record, 0, self._sequence, size, checksum)
        self._written = place + record_bytes
        return StoredReply(epoch=epoch, sequence=self._sequence, place=place, frame_sizes=sizes)

    def close(self) -> None:
        """Give the memory up; it goes with its last user."""
        self._ring.close()
        os.close(self._descriptor)


class ReplyReader:
    """The leader's side; used by one thread."""

    def __init__(self, offer: ReplyMemory) -> None:
        """Open the memory of a follower.

        Raises:
            EndpointError: it is on another host, or out of reach; replies come by the socket.
        """
        if offer.boot_id != _boot_id():
            raise EndpointError("the follower is on another host")
        try:
            self._ring = _opened(offer)
        except OSError as error:
            raise EndpointError(f"{offer.path} cannot be opened: {error.strerror}") from error
        self._sequence = 0

    def take(self, note: StoredReply) -> list[Frame]:
        """The frames of a reply, copied, so that the writer may go on.

        Raises:
            TornReply: something else lies there.
        """
        *starts, size = _layout(note.frame_sizes)
        record_bytes = _padded(_RECORD.size + size, _RECORD_ALIGNMENT)
        offset = note.place % self._ring.capacity
        if note.place < 0 or min(note.frame_sizes, default=0) < 0:
            raise TornReply(f"reply {note.sequence} at {note.place} of {note.frame_sizes} bytes")
        if offset + record_bytes > self._ring.capacity or note.sequence <= self._sequence:
            raise TornReply(f"reply {note.sequence} after {self._sequence}, of {size} bytes")
        record = self._ring.at(note.place, _RECORD.size + size)
        payload = bytes(record[_RECORD.size :])
        sequence, stored, checksum = _RECORD.unpack_from(record)
        if (sequence, stored) != (note.sequence, size):
            raise TornReply(f"reply {sequence} of {stored} bytes where {note.sequence} was noted")
        if checksum and zlib.crc32(payload) != checksum:
            raise TornReply(f"reply {sequence} has another checksum")
        self._sequence = note.sequence
        self._ring.counters[_DONE] = note.place + record_bytes
        view = memoryview(payload)
        parts = zip(starts, note.frame_sizes, strict=True)
        return [view[start : start + length] for start, length in parts]

    def close(self) -> None:
        """Give the memory up."""
        self._ring.close()


def _opened(offer: ReplyMemory) -> _Ring:
    # Only a memory file of ours: another process's descriptors may be anything, and open is an
    # act on some of them.
    if not str(Path(offer.path).readlink()).startswith(f"/memfd:{_NAME}"):
        raise EndpointError(f"{offer.path} is no memory for replies")
    descriptor = os.open(offer.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _SEALS
        if not sealed or os.fstat(descriptor).st_size != _DATA + offer.capacity:
            raise EndpointError(f"{offer.path} has another size than it was offered with")
        ring = _Ring(descriptor, offer.capacity)
    finally:
        os.close(descriptor)
    if bytes(ring.secret).hex() != offer.secret:
        ring.close()
        raise EndpointError(f"{offer.path} is the memory of another follower")
    return ring


def _in_one_piece(cursor: int, size: int, capacity: int) -> int:
    """First place from `cursor` on that does not run over the ring's end."""
    offset = cursor % capacity
    return cursor if offset + size <= capacity else cursor + capacity - offset


def _layout(sizes: Sequence[int]) -> list[int]:
    """Where each frame begins in a payload, and where the last one ends."""
    starts = [0]
    for size in sizes:
        starts.append(_padded(starts[-1] + size, _FRAME_ALIGNMENT))
    return starts


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
