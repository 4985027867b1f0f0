"""Connections between probes: do they come through, how fast, and what do the clocks say?

A connection starts with the examination's nonce, then the client asks for the time several
times, then sends a larger message that comes back whole. All on blocking sockets with deadlines;
each connection and each attempt has a thread of its own.
"""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rufus_serve.doctor.messages import Link, Listen, Listening, Reach, Target

BULK_BYTES = 256 << 10
"""More than any frame, so that it travels in segments as large as the path is said to carry."""

_ASKS = 5
_ANSWER_S = 10.0
_IP_MTU = 14
"""Linux: the path MTU of a connected socket (ip(7)); Python has no name for it."""
_LINE_BYTES = 4096


class Listener:
    """Answers other probes on some ports, on threads of its own."""

    def __init__(self, order: Listen) -> None:
        self._order = order
        self._sockets: dict[str, socket.socket] = {}
        self._faults: dict[str, str] = {}
        for purpose, port in order.ports.items():
            self._open(purpose, port)

    @property
    def state(self) -> Listening:
        """Where it listens, and where it cannot."""
        ports = {name: each.getsockname()[1] for name, each in self._sockets.items()}
        return Listening(ports=ports, faults=self._faults)

    def close(self) -> None:
        """Listen no more."""
        for listening in self._sockets.values():
            # Closing alone would not wake the thread in accept().
            _shut(listening)
            listening.close()

    def _open(self, purpose: str, port: int) -> None:
        try:
            listening = _listen(self._order.address, port)
        except OSError as error:
            self._faults[purpose] = error.strerror or str(error)
            return
        self._sockets[purpose] = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(_ANSWER_S)
            try:
                self._talk(peer)
            except (OSError, ValueError):
                return

    def _talk(self, peer: socket.socket) -> None:
        lines = peer.makefile("rb")
        while line := lines.readline(_LINE_BYTES):
            came = time.time()
            asked = json.loads(line)
            if asked.get("nonce") != self._order.nonce:
                return
            size = min(int(asked.get("bulk", 0)), BULK_BYTES)
            bulk = lines.read(size)
            answer = {"node": self._order.node, "came": came, "left": time.time()}
            peer.sendall(json.dumps(answer).encode() + b"\n" + bulk)


def _listen(address: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def reach(order: Reach) -> tuple[Link, ...]:
    """Try all targets at once."""
    if not order.targets:
        return ()
    with ThreadPoolExecutor(min(64, len(order.targets))) as pool:
        return tuple(pool.map(lambda target: _try(order, target), order.targets))


def _try(order: Reach, target: Target) -> Link:
    try:
        connection = socket.create_connection((target.address, target.port), order.timeout_s)
    except OSError as error:
        return Link(source=order.node, target=target, fault=_reason(error))
    with connection:
        if not target.talks:
            return Link(source=order.node, target=target, answered_by=target.node)
        return _measure(order, target, connection)


def _measure(order: Reach, target: Target, connection: socket.socket) -> Link:
    connection.settimeout(order.timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = connection.makefile("rb")
    try:
        asks = [_ask(order.nonce, connection, lines) for _ in range(_ASKS)]
    except (OSError, ValueError, KeyError) as error:
        fault = f"connected, but no answer came: {_reason(error)}"
        return Link(source=order.node, target=target, fault=fault)
    round_trip_s, offset_s, node = min(asks)
    return Link(
        source=order.node,
        target=target,
        answered_by=node,
        round_trip_s=round_trip_s,
        offset_s=offset_s,
        bulk_fault=_bulk(order.nonce, connection, lines),
        path_mtu=_path_mtu(connection),
    )


def _ask(nonce: str, connection: socket.socket, lines: Any) -> tuple[float, float, str]:
    """Round trip and clock offset in seconds, and who answered."""
    sent = time.time()
    connection.sendall(json.dumps({"nonce": nonce}).encode() + b"\n")
    answer = json.loads(lines.readline(_LINE_BYTES))
    times = (sent, float(answer["came"]), float(answer["left"]), time.time())
    return *round_trip_and_offset(*times), str(answer["node"])


def round_trip_and_offset(
    sent: float, came: float, left: float, returned: float
) -> tuple[float, float]:
    """Seconds on the way, and what the other clock is ahead; `came` and `left` are of that clock.

    As NTP has it, as if the way there took as long as the way back (RFC 5905, section 8).
    """
    return (returned - sent) - (left - came), ((came - sent) + (left - returned)) / 2


def _bulk(nonce: str, connection: socket.socket, lines: Any) -> str:
    """Send a larger message there and back; what went wrong, or empty."""
    head = json.dumps({"nonce": nonce, "bulk": BULK_BYTES}).encode() + b"\n"
    try:
        connection.sendall(head + bytes(BULK_BYTES))
        lines.readline(_LINE_BYTES)
        came = len(lines.read(BULK_BYTES))
    except OSError as error:
        return _reason(error)
    return "" if came == BULK_BYTES else f"{came} of {BULK_BYTES} bytes came back"


def _path_mtu(connection: socket.socket) -> int:
    try:
        return connection.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
