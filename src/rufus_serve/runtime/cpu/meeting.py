"""How followers on one host meet: each gets node rank 0's memory file over a Unix socket.

The socket's name is abstract and the memory file anonymous, so both vanish with the processes
that hold them, however those end. The connections stay open: one that closes tells that its
peer is gone.
"""

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time

from rufus_serve.errors import CollectiveAborted
from rufus_serve.runtime.base import GroupSpec

_POLL_S = 0.02
_RANK = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")


class Meeting:
    """The connections of one follower: of rank 0 to all others, of these to rank 0.

    Raises:
        CollectiveAborted: from the constructor, if peers stay away or `aborted` is set.
    """

    def __init__(
        self, group: GroupSpec, *, size_bytes: int, aborted: threading.Event, deadline_s: float
    ) -> None:
        self._group = group
        self._aborted = aborted
        self._give_up_at = time.monotonic() + deadline_s
        self._peers: dict[int, socket.socket] = {}
        digest = hashlib.sha256(group.rendezvous.encode()).hexdigest()
        self._name = f"\0rufus-serve/{digest}"
        try:
            self.memory_fd = self._host(size_bytes) if group.node_rank == 0 else self._visit()
        except BaseException:
            self.close()
            raise

    def lost_peer(self) -> int | None:
        """Node rank of a peer whose connection has closed."""
        return next((rank for rank, peer in self._peers.items() if _is_closed(peer)), None)

    def close(self) -> None:
        """Close the connections; may be called twice."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _host(self, size_bytes: int) -> int:
        """Make the memory file and hand it to every follower that comes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(self._name)
            except OSError as error:
                raise CollectiveAborted(
                    f"rendezvous {self._group.rendezvous!r} is in use: {error.strerror}"
                ) from error
            listener.listen(self._group.num_nodes)
            memory_fd = os.memfd_create("rufus-serve-collectives", os.MFD_CLOEXEC)
            try:
                os.ftruncate(memory_fd, size_bytes)
                while len(self._peers) < self._group.num_nodes - 1:
                    self._admit_one(listener, memory_fd)
            except BaseException:
                os.close(memory_fd)
                raise
            return memory_fd

    def _admit_one(self, listener: socket.socket, memory_fd: int) -> None:
        listener.settimeout(_POLL_S)
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            absent = set(range(1, self._group.num_nodes)) - set(self._peers)
            self._raise_if_over(f"followers {sorted(absent)} did not come")
            return
        peer.settimeout(1.0)
        with contextlib.suppress(OSError, struct.error):
            rank = _RANK.unpack(peer.recv(_RANK.size))[0]
            if _is_own_user(peer) and 0 < rank < self._group.num_nodes and rank not in self._peers:
                socket.send_fds(peer, [b"m"], [memory_fd])
                peer.setblocking(False)
                self._peers[rank] = peer
                return
        peer.close()

    def _visit(self) -> int:
        """Get the memory file from rank 0."""
        while True:
            self._raise_if_over("follower 0 did not come")
            host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            host.settimeout(_POLL_S)
            try:
                host.connect(self._name)
                if not _is_own_user(host):
                    raise ConnectionRefusedError
                host.sendall(_RANK.pack(self._group.node_rank))
                host.settimeout(1.0)
                _, fds, _, _ = socket.recv_fds(host, 1, 1)
            except OSError:
                host.close()
                time.sleep(_POLL_S)
                continue
            if not fds:
                host.close()
                raise CollectiveAborted(
                    f"follower 0 refused node rank {self._group.node_rank} at rendezvous "
                    f"{self._group.rendezvous!r}"
                )
            host.setblocking(False)
            self._peers[0] = host
            return fds[0]

    def _raise_if_over(self, what: str) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted("joining the group was aborted on this follower")
        if time.monotonic() > self._give_up_at:
            raise CollectiveAborted(f"{what} to rendezvous {self._group.rendezvous!r} in time")


def _is_closed(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_own_user(peer: socket.socket) -> bool:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user_id, _ = _CREDENTIALS.unpack(raw)
    return bool(user_id == os.geteuid())
