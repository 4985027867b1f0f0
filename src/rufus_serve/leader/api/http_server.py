"""uvicorn with bounds on what a peer may send, hold open and leave unread.

uvicorn bounds neither headers nor the time that a connection may take over them, and waits for
ever for a peer that does not read.
"""

import asyncio
import contextlib
import logging
import socket
import time
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rufus_serve.config import ServeConfig
from rufus_serve.config.schema import HttpConfig
from rufus_serve.leader.api.connections import Room, affordable_connections
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send
from rufus_serve.leader.api.http_parser import RequestParser
from rufus_serve.leader.api.tls import ServerTls

_log = logging.getLogger(__name__)
_GRACEFUL_S = 2
_FIELD_SIGNS = len(": \r\n")
_LINGER_S = 2.0
_REFUSED_BYTES, _ANSWERED_BYTES = 128_000, 8_000_000
"""Thrown away of what comes yet; who sends more waits, as it might be an attack.

Beside it the kernel takes a few hundred kilobytes before a peer's sending blocks."""
_MOST_TURNED_AWAY = 64
_BODY_PART = 1 << 16
_BACKLOG, _ACCEPTED_AT_ONCE = 2048, 16
"""Connections that may wait, and those accepted before requests have their turn again."""
_FRAMING_PER_BYTE = 16
"""Of a chunked body, so that one sent byte by byte passes."""
_READ_BYTES = 1 << 16
"""Taken of a connection before others have their turn; asyncio takes four times as much."""
_SWEEP_TICKS = 10
"""Of uvicorn's main loop, which ticks ten times a second."""


class _Deaf(Exception):
    """What else came with a request is of no interest."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection: bounded headers, and what `enforce` needs to know; event loop only."""

    def __init__(
        self,
        *args: Any,
        http: HttpConfig,
        room: Room,
        turned_away: set["BoundedProtocol"],
        **kwargs: Any,
    ) -> None:
        """`room`: where it may be; `turned_away`: those that linger outside."""
        super().__init__(*args, **kwargs)
        self.parser = RequestParser(self)  # type: ignore[assignment]
        self._http, self._room, self._turned_away = http, room, turned_away
        self._in_head, self._in_body = True, False
        self._head_bytes = self._framing_bytes = 0
        self._stalled_since: float | None = None
        self._ask, self.app = self.app, self._serve
        self._first: RequestResponseCycle | None = None
        """Of the requests sent ahead of answers, while work on it has not begun."""
        self._is_deaf = self._is_refused = False
        """What comes now is read no more; the connection ends with the answer that is due."""
        self._discardable = 0
        self.address = ""
        self._waiting_since: float | None = time.monotonic()
        """Since when a head is due: from the connection's or the request's first byte on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make room if there are too many, or refuse this one."""
        self.address = _address(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        super().connection_made(transport)  # type: ignore[arg-type]
        try:
            self._room.enter(self)
        except HttpError as error:
            self._turn_away(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer or we hung up."""
        self._turned_away.discard(self)
        self._room.leave(self)
        super().connection_lost(exc)

    def _turn_away(self, refusal: HttpError) -> None:
        """Refuse a connection that is one too many; it counts for nothing while it lingers."""
        self.connections.discard(self)
        self._turned_away.add(self)
        self.refuse(refusal)
        if len(self._turned_away) > _MOST_TURNED_AWAY:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse; what outgrows its bound is refused before it is all read."""
        if self._is_deaf:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._waiting_since is None and self._between_requests:
            self._waiting_since = time.monotonic()
            self._room.awaits(self)
        was_in_head, was_in_body = self._in_head, self._in_body
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not isinstance(error.__context__, _Deaf):
                self.refuse(HttpError(400, "what was sent is not a request in HTTP/1.1"))
            return
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            self._check_head()
        if was_in_body and self._in_body:
            self._framing_bytes += len(data)
            self._check_framing()

    def _discard(self, num_bytes: int) -> None:
        self._discardable -= num_bytes
        if self._discardable < 0:
            self.flow.pause_reading()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if self._is_deaf:
            # Ends the parsing of what may be a thousand of them.
            raise _Deaf
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; what trails a body is not kept."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; the body has a deadline of its own where it is read."""
        if self._is_deaf:
            return
        self._in_body, self._framing_bytes = True, 0
        fields = sum(len(name) + len(value) + _FIELD_SIGNS for name, value in self.headers)
        self._head_bytes = len(self.url) + fields
        self._in_head, self._waiting_since = False, None
        if self.pipeline:
            self._end_burst()
        elif self._check_head():
            super().on_headers_complete()
            self._room.serves(self)
            if not self.pipeline:
                self._first = self.cycle

    def _end_burst(self) -> None:
        """Hear no more of a peer that asks on without reading answers.

        It would have a thousand requests served for nothing. One may wait: a client may see an
        answer's end before we do. None is served of more than come at once.
        """
        if self._first is None:
            self.pipeline[0][0].keep_alive, self._is_deaf = False, True
            return
        self._first.disconnected = True
        self.pipeline.clear()
        self.refuse(HttpError(400, "more than two requests were sent ahead of their answers"))
        self.flow.pause_reading()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request whose turn has come, unless the peer was hung up on meanwhile."""
        self._first = None
        if not self._is_refused:
            await self._ask(scope, receive, send)

    def on_body(self, body: bytes) -> None:
        """Part of a body; work is woken for much of it or all, not for each byte that drips in."""
        self._framing_bytes -= len(body) * (1 + _FRAMING_PER_BYTE)
        cycle = self.cycle
        if self._is_deaf or self.transport.is_closing() or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) >= _BODY_PART:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A body's end."""
        self._in_body = False
        if not (self._is_deaf or self.transport.is_closing()):
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Hang up on a peer that was answered before it sent all of its body."""
        if not self.pipeline:
            self._room.awaits(self)
        if self.cycle.more_body and not self.transport.is_closing():
            self._hang_up_gently(_ANSWERED_BYTES)
        super().on_response_complete()

    def _hang_up_gently(self, discardable: int) -> None:
        """Take what the peer still sends for a while, and throw so many bytes of it away.

        A connection that is closed with something unread is reset, and the answer may go with it.
        """
        self._is_deaf, self._discardable = True, discardable
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def resume_writing(self) -> None:
        """The peer reads."""
        self._stalled_since = None
        super().resume_writing()

    def refuse(self, error: HttpError) -> None:
        """Answer with `error`, whatever was asked, and hang up."""
        if self.transport.is_closing() or self._is_deaf:
            return
        if self._is_answering():
            # An answer within another would be taken for a part of it.
            self.drop()
            return
        self._is_refused = True
        self._room.awaits(self)
        if not self._between_requests:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error.body()
        reason = f"HTTP/1.1 {error.status} {error.phrase}\r\n"
        fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{reason}{fields}connection: close\r\n\r\n".encode() + body)
        self._hang_up_gently(_REFUSED_BYTES)

    def enforce(self, now: float) -> None:
        """Hang up if the peer sends or reads too slowly."""
        since = self._waiting_since
        if since is not None and now - since > self._http.header_timeout_s:
            self._waiting_since = now
            limit = self._http.header_timeout_s
            if not self._head_bytes:
                self.transport.close()
            else:
                self.refuse(HttpError(408, f"the request's headers took longer than {limit:g} s"))
        if not self._has_unread():
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > self._http.write_timeout_s:
            self.transport.abort()

    def drop(self) -> None:
        """Hang up at once."""
        self.transport.abort()

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_answering(self) -> bool:
        """Whether part of an answer is out, or another's turn comes before that to this request."""
        return bool(self.pipeline) or (not self._between_requests and self.cycle.response_started)

    def _check_framing(self) -> None:
        limit = self._http.max_header_kb
        if self._framing_bytes > limit * 1000:
            self.refuse(
                HttpError(431, f"chunk extensions and trailers are larger than {limit:g} kB")
            )

    def _check_head(self) -> bool:
        limit = self._http.max_header_kb
        is_small = self._head_bytes <= limit * 1000
        if not is_small:
            self.refuse(HttpError(431, f"the request's headers are larger than {limit:g} kB"))
        return is_small

    def _has_unread(self) -> bool:
        waiting = self.flow.write_paused or self.transport.is_closing()
        return waiting and self.transport.get_write_buffer_size() > 0


class HttpServer(uvicorn.Server):
    """Serves `app` on a socket that is bound already; leaves signals to the caller."""

    def __init__(self, app: App, config: ServeConfig) -> None:
        http = config.http
        self._http = http
        most = affordable_connections(http.max_connections)
        if most < http.max_connections:
            _log.warning(
                "%d connections at most, not http.max_connections (%d): the limit of open files "
                "allows no more; raise it (ulimit -Hn, LimitNOFILE)",
                most, http.max_connections,
            )  # fmt: skip
        self._room = Room(most, most_per_address=http.max_connections_per_address)
        self._turned_away: set[BoundedProtocol] = set()
        self._tls = ServerTls(http) if http.tls_certificate else None
        super().__init__(_uvicorn_config(app, config))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; as uvicorn's, with our protocol and a deadline for TLS handshakes."""
        loop = asyncio.get_running_loop()
        await self.lifespan.startup()

        def connection() -> BoundedProtocol:
            return BoundedProtocol(
                self.config,
                self.server_state,
                self.lifespan.state,
                http=self._http,
                room=self._room,
                turned_away=self._turned_away,
            )

        context = self._tls.context if self._tls else None
        handshake_s = self._http.header_timeout_s if context else None
        self.servers = [
            await loop.create_server(
                connection,
                sock=sock,
                ssl=context,
                ssl_handshake_timeout=handshake_s,
                backlog=_ACCEPTED_AT_ONCE,
            )
            for sock in sockets or ()
        ]
        for sock in sockets or ():
            # To asyncio it is one number, but many may wait.
            sock.listen(_BACKLOG)
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, and once a second look after each connection and the certificates."""
        turn, now = counter % _SWEEP_TICKS, time.monotonic()
        for connection in list(self.server_state.connections):
            # A few at a time: thousands at once would hold up what is served.
            if hash(connection) % _SWEEP_TICKS == turn:
                connection.enforce(now)  # type: ignore[union-attr]
        if self._tls and not turn:
            self._tls.reload()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Install no handlers."""
        yield


def _address(transport: asyncio.BaseTransport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _uvicorn_config(app: App, config: ServeConfig) -> uvicorn.Config:
    verbose = config.log_level == "DEBUG"
    return uvicorn.Config(
        app,
        access_log=verbose,
        log_level="info" if verbose else "warning",
        lifespan="off",
        timeout_graceful_shutdown=_GRACEFUL_S,
        timeout_keep_alive=int(config.http.keep_alive_s),
        ws="none",
        server_header=False,
    )
