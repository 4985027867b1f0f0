"""ZeroMQ sockets of the group: encrypted, authenticated both ways, and watched.

Every owner makes a context of its own, never at import and never `Context.instance()`: the
engine process is forked, and a ZAP handler serves exactly one context.
"""

import errno
import hmac
import logging
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, cast

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.errors import EndpointError

Socket = zmq.Socket[Any]
Context = zmq.Context[zmq.Socket[bytes]]

# Plain numbers: the flag classes cost a microsecond per test, many times a step.
_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)

_log = logging.getLogger(__name__)

_HANDSHAKE_MS = 5000
_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1000
_MAX_FRAME_BYTES = 1 << 24
"""Of what a bound socket receives. libzmq reads frames before it knows who sends them."""
_HANDSHAKES_TO_GIVE_UP = 2
"""A peer with another token drops the connection at once, but so does one that just died."""


def new_socket(context: Context, kind: int) -> Socket:
    """A socket that queues without bound, so that sending never blocks, and pings its peers."""
    socket = context.socket(kind)
    configure(socket)
    return socket


def configure(socket: Socket, *, ping_s: float = 1.0, silence_s: float = 5.0) -> None:
    """Set what all sockets of the group have in common.

    Peers are pinged every `ping_s`, and cut off if they do not answer within `silence_s`.
    """
    socket.linger = 0
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(ping_s * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(silence_s * 1000))
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)


def connect(socket: Socket, endpoint: str, keys: GroupKeys) -> None:
    """Begin to connect as a client of the group; the outcome shows on the monitor.

    Raises:
        EndpointError: `endpoint` is malformed.
    """
    socket.curve_serverkey = keys.server_public
    socket.curve_publickey = keys.client_public
    socket.curve_secretkey = keys.client_secret
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise EndpointError(f"cannot connect to {endpoint}: {error.strerror}") from error


def bind(socket: Socket, endpoint: str, keys: GroupKeys) -> str:
    """Listen as a server of the group; the endpoint with the real port.

    Raises:
        EndpointError: the address is not this host's, or the port is taken or not allowed.
    """
    socket.curve_server = True
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
    socket.curve_publickey = keys.server_public
    socket.curve_secretkey = keys.server_secret
    # libzmq skips the ZAP handler, and takes any client, when the domain is empty.
    socket.zap_domain = b"rufus-serve"
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise EndpointError(f"cannot listen on {endpoint}: {_bind_advice(error)}") from error
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _bind_advice(error: zmq.ZMQError) -> str:
    advice = {
        errno.EADDRINUSE: "another process uses it; free it, or choose another port or 0",
        errno.EACCES: "not allowed; choose a port above 1023 or a folder you may write",
        errno.EADDRNOTAVAIL: "no interface of this host has that address",
        errno.ENODEV: "no interface of this host has that address",
        errno.EINVAL: "malformed; expected tcp://ADDRESS:PORT or ipc://PATH",
        errno.ENAMETOOLONG: "the path is too long for a socket; choose a shorter folder",
    }
    return f"{error.strerror} ({advice.get(error.errno or 0, 'check address and port')})"


def poll_fd(socket: Socket) -> int:
    """Descriptor that turns readable when `socket` may have something; look, then wait."""
    return int(socket.getsockopt(zmq.FD))


def receive_frames(socket: Socket) -> list[memoryview] | None:
    """The frames of the next message, not copied; None if there is none yet."""
    if not cast(int, socket.getsockopt(_EVENTS)) & _POLLIN:
        return None
    frames: list[memoryview] = []
    more = True
    while more:
        frame = socket.recv(_NOBLOCK, copy=False)
        frames.append(frame.buffer)
        more = frame.more
    return frames


class ClientGate:
    """The ZAP handler of one context: lets in who holds the group's client key, on a thread.

    Make it before the first `bind`; it ends with its context, `join` afterwards.
    """

    def __init__(self, context: Context, keys: GroupKeys) -> None:
        self._client_key = z85.decode(keys.client_public)
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._thread = threading.Thread(target=self._run, name="zap", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, request_id, _domain, address, _identity, mechanism, *credentials = request
        key = credentials[0] if credentials else b""
        if mechanism == b"CURVE" and hmac.compare_digest(key, self._client_key):
            return [version, request_id, b"200", b"OK", b"group", b""]
        _log.warning("refused a connection from %s: not a key of this group", address.decode())
        return [version, request_id, b"400", b"not a key of this group", b"", b""]


class ConnectionEvent(Enum):
    """What happened to a client's connection."""

    UP = "up"
    DOWN = "down"
    REFUSED = "refused"


class ConnectionMonitor:
    """Turns libzmq's socket events into `ConnectionEvent`s; for the socket's own thread."""

    def __init__(self, socket: Socket) -> None:
        events = (
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_DISCONNECTED
        )
        self._watched = socket
        self.socket = socket.get_monitor_socket(events)
        # The descriptor stays silent until the first look finds the socket empty.
        receive_frames(self.socket)
        self._up = False
        self._failed_handshakes = 0

    def drain(self, report: Callable[[ConnectionEvent], None]) -> None:
        """Report what happened since the last call; never blocks."""
        while (frames := receive_frames(self.socket)) is not None:
            event = self._translate(parse_monitor_message([bytes(f) for f in frames])["event"])
            if event is not None:
                report(event)

    def close(self) -> None:
        """Stop watching; call before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close()

    def _translate(self, event: int) -> ConnectionEvent | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._up, self._failed_handshakes = True, 0
            return ConnectionEvent.UP
        if event == zmq.EVENT_DISCONNECTED:
            was_up, self._up = self._up, False
            return ConnectionEvent.DOWN if was_up else None
        # libzmq tries again after a mere end of the connection, but not with whom speaks otherwise.
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._failed_handshakes += 1
            if self._failed_handshakes < _HANDSHAKES_TO_GIVE_UP:
                return None
        return ConnectionEvent.REFUSED
