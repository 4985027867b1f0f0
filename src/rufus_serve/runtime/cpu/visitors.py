"""Who may take part in a meeting: both ends prove that they know the epoch's rendezvous.

    host     challenge: 16 random bytes
    visitor  its rank, 16 random bytes, and an HMAC-SHA256 of both challenges and the rank
    host     an HMAC-SHA256 of both challenges, if the visitor is awaited

Neither sends what would let a listener or an impostor take part later.
"""

import contextlib
import hmac
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_CHALLENGE_BYTES = 16
_PROOF_BYTES = 32
_CARD = struct.Struct(f"<I{_CHALLENGE_BYTES}s{_PROOF_BYTES}s")
ANSWER_S = 1.0
"""For a stranger to prove who it is; meanwhile it holds up nobody."""
_MAX_STRANGERS = 128
"""At most; the next one takes the place of the one that has been there longest."""


Arrival = tuple[int, bytes, socket.socket]
"""Of a visitor that proved itself: its node rank, what to answer it, its connection."""


@dataclass
class _Stranger:
    """A connection that has not proved anything yet."""

    peer: socket.socket
    give_up_at: float
    challenge: bytes = field(default_factory=lambda: secrets.token_bytes(_CHALLENGE_BYTES))
    said: bytes = b""


class Visitors:
    """Rank 0's side: connections of a listener, served side by side until they prove themselves."""

    def __init__(self, listener: socket.socket, secret: bytes) -> None:
        listener.setblocking(False)
        self._listener, self._secret = listener, secret
        self._strangers: dict[int, _Stranger] = {}

    def arrivals(self, *, timeout_s: float) -> Iterator[Arrival]:
        """Visitors that proved themselves since the last call."""
        poller = select.poll()
        for fd in (self._listener.fileno(), *self._strangers):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(timeout_s * 1000)]
        if self._listener.fileno() in ready:
            self._accept_all()
        for fd in ready:
            stranger = self._strangers.get(fd)
            if stranger is not None:
                yield from self._listen_to(fd, stranger)
        self._send_away([fd for fd, each in self._strangers.items() if _is_late(each)])

    def close(self) -> None:
        """Send everybody away who has not proved anything."""
        self._send_away(list(self._strangers))

    def _accept_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                peer, _ = self._listener.accept()
                if len(self._strangers) >= _MAX_STRANGERS:
                    self._send_away([next(iter(self._strangers))])
                peer.setblocking(False)
                stranger = _Stranger(peer, time.monotonic() + ANSWER_S)
                self._strangers[peer.fileno()] = stranger
                with contextlib.suppress(OSError):
                    peer.send(stranger.challenge)

    def _listen_to(self, fd: int, stranger: _Stranger) -> Iterator[Arrival]:
        """What the stranger said so far; it arrives if that is all and right."""
        try:
            more = stranger.peer.recv(_CARD.size - len(stranger.said))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        stranger.said += more
        if more and len(stranger.said) < _CARD.size:
            return
        if more:
            rank, challenge, proof = _CARD.unpack(stranger.said)
            if hmac.compare_digest(proof, self._proof(b"visitor", stranger, challenge, rank)):
                del self._strangers[fd]
                yield rank, self._proof(b"host", stranger, challenge, rank), stranger.peer
                return
        self._send_away([fd])

    def _proof(self, side: bytes, stranger: _Stranger, challenge: bytes, rank: int) -> bytes:
        return _proof(self._secret, side, stranger.challenge, challenge, rank)

    def _send_away(self, fds: list[int]) -> None:
        for fd in fds:
            self._strangers.pop(fd).peer.close()


class Card:
    """A visitor's side of the same."""

    def __init__(self, secret: bytes, rank: int, hosts_challenge: bytes) -> None:
        own = secrets.token_bytes(_CHALLENGE_BYTES)
        proof = _proof(secret, b"visitor", hosts_challenge, own, rank)
        self.text = _CARD.pack(rank, own, proof)
        """To be sent."""
        self.answer = _proof(secret, b"host", hosts_challenge, own, rank)
        """What the real host says to it."""


def read_challenge(host: socket.socket) -> bytes:
    """What the host says first.

    Raises:
        OSError: it hung up, or said nothing in time.
    """
    said = host.recv(_CHALLENGE_BYTES, socket.MSG_WAITALL)
    if len(said) != _CHALLENGE_BYTES:
        raise ConnectionResetError
    return said


def _proof(secret: bytes, side: bytes, hosts: bytes, visitors: bytes, rank: int) -> bytes:
    words = side + hosts + visitors + rank.to_bytes(4, "little")
    return hmac.digest(secret, words, "sha256")


def _is_late(stranger: _Stranger) -> bool:
    return time.monotonic() > stranger.give_up_at
