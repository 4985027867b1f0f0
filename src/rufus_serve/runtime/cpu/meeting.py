"""How the followers of a group find each other: node rank 0 listens, the others connect.

On one host they meet at an abstract Unix socket, across hosts at rank 0's TCP port. Neither
leaves anything behind, however its process ends. The connections stay open for the epoch: one
that closes tells that its peer is gone.
"""

import contextlib
import hashlib
import os
import select
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from rufus_serve.errors import CollectiveAborted, ConfigError
from rufus_serve.runtime.base import GroupSpec

_POLL_S = 0.02
_ANSWER_S = 1.0
_GREETING = struct.Struct("<32sI")
_ADMITTED = b"y"
_CREDENTIALS = struct.Struct("3i")
# Hang-ups and errors are always reported; the half-closed state only where asked for, on Linux.
_PEER_CLOSED = getattr(select, "POLLRDHUP", 0)


class Meeting:
    """The connections of one follower, by node rank: of rank 0 to all, of the others to rank 0.

    With `shared_fd`, rank 0 hands that file to every follower, whose `shared_fd` it becomes.

    Raises:
        CollectiveAborted: from the constructor, if peers stay away or `aborted` is set.
        ConfigError: the rendezvous is malformed.
    """

    def __init__(
        self,
        group: GroupSpec,
        *,
        aborted: threading.Event,
        deadline_s: float,
        shared_fd: int | None = None,
    ) -> None:
        self.peers: dict[int, socket.socket] = {}
        self.shared_fd = shared_fd
        self._group = group
        self._aborted = aborted
        self._give_up_at = time.monotonic() + deadline_s
        self._digest = hashlib.sha256(group.rendezvous.encode()).digest()
        self._family, self._address = self._place()
        try:
            if group.node_rank == 0:
                self._host()
            else:
                self._visit()
        except BaseException:
            self.close()
            raise

    def lost_peer(self) -> int | None:
        """Node rank of a peer whose connection has closed."""
        return next((rank for rank, peer in self.peers.items() if _is_closed(peer)), None)

    def close(self) -> None:
        """Close the connections; may be called twice."""
        for peer in self.peers.values():
            peer.close()
        self.peers.clear()

    def _place(self) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
        """Where to meet."""
        if "://" not in self._group.rendezvous:
            return socket.AF_UNIX, f"\0rufus-serve/{self._digest.hex()}"
        try:
            parts = urlsplit(self._group.rendezvous)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme != "tcp" or not host or not port:
            raise ConfigError(f"rendezvous must be tcp://HOST:PORT, got {self._group.rendezvous!r}")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return family, (host, port)

    def _host(self) -> None:
        """Admit every other follower."""
        with socket.socket(self._family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(self._address)
            except OSError as error:
                raise CollectiveAborted(
                    f"rendezvous {self._group.rendezvous!r} cannot be listened on: {error.strerror}"
                ) from error
            listener.listen(self._group.num_nodes)
            listener.settimeout(_POLL_S)
            while len(self.peers) < self._group.num_nodes - 1:
                absent = set(range(1, self._group.num_nodes)) - set(self.peers)
                self._raise_if_over(f"followers {sorted(absent)} did not come")
                with contextlib.suppress(TimeoutError):
                    self._admit(listener.accept()[0])

    def _admit(self, peer: socket.socket) -> None:
        """Keep `peer` if it is an awaited follower."""
        peer.settimeout(_ANSWER_S)
        with contextlib.suppress(OSError, struct.error):
            digest, rank = _GREETING.unpack(peer.recv(_GREETING.size, socket.MSG_WAITALL))
            is_awaited = 0 < rank < self._group.num_nodes and rank not in self.peers
            if digest == self._digest and is_awaited and self._is_trusted(peer):
                if self.shared_fd is None:
                    peer.sendall(_ADMITTED)
                else:
                    socket.send_fds(peer, [_ADMITTED], [self.shared_fd])
                self._keep(rank, peer)
                return
        peer.close()

    def _visit(self) -> None:
        """Connect to rank 0, which may not listen yet."""
        while not self.peers:
            self._raise_if_over("follower 0 did not come")
            host = socket.socket(self._family, socket.SOCK_STREAM)
            try:
                self._greet(host)
            except OSError:
                host.close()
                time.sleep(_POLL_S)
            except BaseException:
                host.close()
                raise

    def _greet(self, host: socket.socket) -> None:
        host.settimeout(_ANSWER_S)
        host.connect(self._address)
        if not self._is_trusted(host):
            raise CollectiveAborted(
                f"rendezvous {self._group.rendezvous!r} is held by another user"
            )
        host.sendall(_GREETING.pack(self._digest, self._group.node_rank))
        # Rank 0 may be busy admitting others, each within _ANSWER_S.
        while not select.select([host], [], [], _POLL_S)[0]:
            self._raise_if_over("follower 0 did not answer")
        if self._family == socket.AF_UNIX:
            answer, fds, _, _ = socket.recv_fds(host, len(_ADMITTED), 1)
            self.shared_fd = fds[0] if fds else None
        else:
            answer = host.recv(len(_ADMITTED))
        if answer != _ADMITTED:
            raise ConnectionRefusedError
        self._keep(0, host)

    def _keep(self, rank: int, peer: socket.socket) -> None:
        peer.setblocking(False)
        if self._family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[rank] = peer

    def _is_trusted(self, peer: socket.socket) -> bool:
        """Whether a peer on this host runs as the same user; unknowable across hosts."""
        if self._family != socket.AF_UNIX:
            return True
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())

    def _raise_if_over(self, what: str) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted("joining the group was aborted on this follower")
        if time.monotonic() > self._give_up_at:
            raise CollectiveAborted(f"{what} to rendezvous {self._group.rendezvous!r} in time")


def _is_closed(peer: socket.socket) -> bool:
    """Whether the other end is closed, even if bytes it sent before are yet to be read."""
    poller = select.poll()
    poller.register(peer, _PEER_CLOSED)
    return bool(poller.poll(0))
