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
from rufus_serve.runtime.cpu.visitors import ANSWER_S, Card, Visitors, read_challenge

_POLL_S = 0.02
_BACKLOG = 128
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
        self._secret = hashlib.sha256(group.rendezvous.encode()).digest()
        self._family, self._address = self._place()
        self._name = _without_secret(group.rendezvous)
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
            return socket.AF_UNIX, f"\0rufus-serve/{hashlib.sha256(self._secret).hexdigest()}"
        try:
            parts = urlsplit(self._group.rendezvous)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme != "tcp" or not host or not port:
            raise ConfigError(
                "rendezvous must be tcp://HOST:PORT, got "
                f"{_without_secret(self._group.rendezvous)!r}"
            )
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
                    f"rendezvous {self._name} cannot be listened on: {error.strerror}"
                ) from error
            listener.listen(_BACKLOG)
            visitors = Visitors(listener, self._secret)
            with contextlib.closing(visitors):
                while len(self.peers) < self._group.num_nodes - 1:
                    absent = set(range(1, self._group.num_nodes)) - set(self.peers)
                    self._raise_if_over(f"followers {sorted(absent)} did not come")
                    for rank, answer, peer in visitors.arrivals(timeout_s=_POLL_S):
                        self._admit(rank, answer, peer)

    def _admit(self, rank: int, answer: bytes, peer: socket.socket) -> None:
        """Keep `peer` if it is an awaited follower."""
        is_awaited = 0 < rank < self._group.num_nodes and rank not in self.peers
        if is_awaited and self._is_trusted(peer):
            with contextlib.suppress(OSError):
                if self.shared_fd is None:
                    peer.sendall(answer)
                else:
                    socket.send_fds(peer, [answer], [self.shared_fd])
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
        host.settimeout(ANSWER_S)
        host.connect(self._address)
        if not self._is_trusted(host):
            raise CollectiveAborted(f"rendezvous {self._name} is held by another user")
        card = Card(self._secret, self._group.node_rank, read_challenge(host))
        host.sendall(card.text)
        if self._family == socket.AF_UNIX:
            answer, fds, _, _ = socket.recv_fds(host, len(card.answer), 1)
            self.shared_fd = fds[0] if fds else None
        else:
            answer = host.recv(len(card.answer), socket.MSG_WAITALL)
        if answer != card.answer:
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
            raise CollectiveAborted(f"{what} to rendezvous {self._name} in time")


def _is_closed(peer: socket.socket) -> bool:
    """Whether the other end is closed, even if bytes it sent before are yet to be read."""
    poller = select.poll()
    poller.register(peer, _PEER_CLOSED)
    return bool(poller.poll(0))


def _without_secret(rendezvous: str) -> str:
    """What of it may be told: of tcp://HOST:PORT/SECRET the place alone."""
    scheme, separator, rest = rendezvous.partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}" if separator else rendezvous
