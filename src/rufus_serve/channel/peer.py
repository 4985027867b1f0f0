"""Typed messages between one server and many clients: the control and link conversations.

`PeerClient` reconnects by itself and keeps its name at the server; what was not yet on the
wire when a connection broke goes out on the next one. Nothing is acknowledged: a message on
the wire of a broken connection is lost, so each connection starts with a hello.
"""

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from rufus_serve.channel.bell import Bell
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.sockets import (
    ClientGate,
    ConnectionEvent,
    ConnectionMonitor,
    Context,
    bind,
    configure,
    connect,
    new_socket,
)
from rufus_serve.errors import EndpointError, HandshakeRefused
from rufus_serve.protocol.codec import CodecError, Frame, decode, encode
from rufus_serve.protocol.messages import AnyMessage

_log = logging.getLogger(__name__)

_MAX_FRAME_BYTES = 1 << 24
_FLUSH_MS = 500


class PeerClient:
    """One encrypted connection to a `PeerServer`; a thread of its own owns the socket.

    `on_message`, `on_connection` and `on_refused` are called on that thread, in order, and must
    be quick. They may call `send`. An exception of theirs is logged, and the connection goes on.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: GroupKeys,
        on_message: Callable[[AnyMessage], None],
        on_connection: Callable[[bool], None] | None = None,
        on_refused: Callable[[HandshakeRefused], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._on_message = on_message
        self._on_connection = on_connection
        self._on_refused = on_refused
        self._refused: HandshakeRefused | None = None
        self._outgoing: deque[list[Frame]] = deque()
        self._bell = Bell()
        self._flush_ms: int | None = None
        self._context: Context = zmq.Context()
        self._socket = new_socket(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        # The first byte must not be zero: libzmq keeps those names for itself.
        self._socket.routing_id = b"p" + os.urandom(8)
        self._monitor = ConnectionMonitor(self._socket)
        try:
            connect(self._socket, endpoint, keys)
        except EndpointError:
            self._hang_up(flush_ms=0)
            raise
        self._thread = threading.Thread(target=self._run, name="peer", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> HandshakeRefused | None:
        """Why the server does not let this client in; None as long as it might."""
        return self._refused

    def send(self, message: AnyMessage) -> None:
        """Queue `message`; never blocks, any thread. Nothing happens once closed."""
        if self._flush_ms is None:
            self._outgoing.append(encode(message))
            self._bell.ring()

    def close(self, *, flush_s: float = 1.0) -> None:
        """Hang up, after at most `flush_s` for what is queued; may be called twice."""
        if self._flush_ms is not None:
            return
        self._flush_ms = int(flush_s * 1000)
        self._bell.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._monitor.socket, self._bell):
            poller.register(source, zmq.POLLIN)
        while self._flush_ms is None:
            poller.poll()
            self._bell.hush()
            self._monitor.drain(self._take_event)
            self._receive()
            self._send_queued()
        self._send_queued()
        self._hang_up(flush_ms=self._flush_ms)

    def _hang_up(self, *, flush_ms: int) -> None:
        self._monitor.close()
        self._socket.close(linger=flush_ms)
        self._context.term()
        self._bell.close()

    def _receive(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames)
            except CodecError as error:
                _log.warning("dropped a malformed message from %s: %s", self._endpoint, error)
                continue
            self._call(self._on_message, message)

    def _send_queued(self) -> None:
        while self._outgoing:
            self._socket.send_multipart(self._outgoing.popleft(), zmq.NOBLOCK)

    def _take_event(self, event: ConnectionEvent) -> None:
        if event is ConnectionEvent.REFUSED:
            self._refuse()
            return
        _log.debug("connection to %s is %s", self._endpoint, event.value)
        if event is ConnectionEvent.UP:
            self._refused = None
        if self._on_connection is not None:
            self._call(self._on_connection, event is ConnectionEvent.UP)

    def _refuse(self) -> None:
        if self._refused is not None:
            return
        self._refused = HandshakeRefused(
            f"{self._endpoint} refuses this process's key: it was started with another token, or "
            "is no rufus-serve endpoint; give every host the same token file"
        )
        _log.error("%s", self._refused)
        if self._on_refused is not None:
            self._call(self._on_refused, self._refused)

    def _call(self, callback: Callable[[Any], None], argument: Any) -> None:
        try:
            callback(argument)
        except Exception:  # noqa: BLE001 - the edge of this thread
            _log.exception("a callback of the connection to %s failed", self._endpoint)


class PeerServer:
    """Where clients of the group connect; used on one event loop, made and closed anywhere."""

    def __init__(
        self, endpoint: str, *, keys: GroupKeys, ping_s: float = 1.0, silence_s: float = 5.0
    ) -> None:
        """Listen on `endpoint`: tcp://ADDRESS:PORT, port 0 for a free one, or ipc://PATH.

        Clients are pinged every `ping_s`; one that does not answer within `silence_s` is cut off.
        libzmq's own thread answers, whatever the client's interpreter does.

        Raises:
            EndpointError: the address cannot be used.
        """
        self._context: Context = zmq.Context()
        self._gate = ClientGate(self._context, keys)
        self._socket = zmq.asyncio.Socket(self._context, zmq.ROUTER)
        configure(self._socket, ping_s=ping_s, silence_s=silence_s)
        self._socket.router_mandatory = True
        # A client that reconnects takes its own name over before its old connection is buried.
        self._socket.router_handover = True
        try:
            self._endpoint = bind(self._socket, endpoint, keys)
        except EndpointError:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        """Where clients connect, with the real port."""
        return self._endpoint

    async def receive(self) -> tuple[bytes, AnyMessage]:
        """The next message and its sender's name; malformed ones are logged and dropped.

        A waiting call is cancelled by `close`.
        """
        while True:
            peer, *frames = await self._socket.recv_multipart()
            try:
                return peer, decode(frames)
            except CodecError as error:
                _log.warning("dropped a malformed message from peer %s: %s", peer.hex(), error)

    async def send(self, peer: bytes, message: AnyMessage) -> bool:
        """Send to one client; False, and a log line, if it is not connected (any more)."""
        try:
            await self._socket.send_multipart([peer, *encode(message)])
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            kind = type(message).__name__
            _log.debug("%s for peer %s not sent: it is not connected", kind, peer.hex())
            return False
        return True

    def close(self) -> None:
        """Stop listening, after at most half a second for what is queued; may be called twice."""
        if not self._socket.closed:
            self._socket.close(linger=_FLUSH_MS)
            self._context.term()
            self._gate.join()
