"""The ASGI layers in front of vLLM's app: API keys, body limit, checks, admission, timeouts.

Plain ASGI, so that streams pass through unbuffered and a client's disconnect is seen at once.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from rufus_serve.config import ServeConfig
from rufus_serve.leader.api.http_error import App, AsgiMessage, HttpError, Receive, Scope, Send
from rufus_serve.leader.api.request_checks import (
    BODY_PATHS,
    INFERENCE_PATHS,
    check_body,
    check_path,
    weight_of,
)

_log = logging.getLogger(__name__)
_DISCARD_BYTES = 1 << 26
_DISCARD_S = 10.0
_HANG_UP_S = 2.0
_FIRST = asyncio.FIRST_COMPLETED
OPEN_PATHS = frozenset({"/health", "/ready", "/ping"})
"""Routes that need no API key."""


class ApiKeys:
    """Lets requests through that bear one of the keys."""

    def __init__(self, app: App, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [f"Bearer {key}".encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        free = scope["path"] in OPEN_PATHS or scope.get("method") == "OPTIONS"
        if free or self._bears_key(scope):
            await self._app(scope, receive, send)
            return
        error = HttpError(401, "the Authorization header must bear a valid API key")
        await error.send(send)

    def _bears_key(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if b"x-api-key" in headers:
            given = b"Bearer " + headers[b"x-api-key"]
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return any(matches)


class Admission:
    """Counts open inference requests; admits, refuses or times them out.

    Event loop thread only. `drain` is called once, when the process is to end.
    """

    def __init__(self, app: App, config: ServeConfig) -> None:
        self._app = app
        self._limits = config.limits
        self._capacity = config.max_num_seqs + config.limits.max_waiting
        self._max_bytes = int(config.limits.max_body_mb * 1_000_000)
        self._open = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut_off = asyncio.Event()
        self._reason = ""

    @property
    def draining(self) -> bool:
        """Nothing more is admitted."""
        return self._draining

    @property
    def num_open(self) -> int:
        """Sequences of the inference requests that are open now."""
        return self._open

    def drain(self) -> None:
        """Admit nothing more."""
        self._draining = True

    def cut_off(self, reason: str) -> None:
        """End all open requests with `reason`; the first call counts."""
        if not self._cut_off.is_set():
            self._draining, self._reason = True, reason
            self._cut_off.set()

    async def idle(self) -> None:
        """Wait until no inference request is open."""
        await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            check_path(scope["path"])
            if scope.get("method") != "POST" or scope["path"] not in BODY_PATHS:
                await self._app(scope, receive, send)
                return
            await self._checked(scope, receive, send)
        except HttpError as error:
            await error.send(send)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        inference = scope["path"] in INFERENCE_PATHS
        if inference:
            self._admit(1)
        raw = await read_body(scope, receive, self._max_bytes)
        body = parse_json(raw)
        check_body(scope["path"], body, self._limits)
        replay = Replay(raw, receive)
        if not inference:
            await self._app(scope, replay, send)
            return
        weight = weight_of(body)
        self._admit(weight)
        self._enter(weight)
        try:
            await self._timed(scope, replay, send)
        finally:
            self._enter(-weight)

    def _admit(self, weight: int) -> None:
        if self._draining:
            raise HttpError(503, "the server is draining; try another one", retry_after_s=5)
        if weight > self._capacity:
            raise HttpError(
                400, f"{weight} sequences in one request; at most {self._capacity} are allowed"
            )
        if self._open + weight > self._capacity:
            raise HttpError(
                429,
                f"{self._open} sequences are running or waiting, of {self._capacity} allowed; "
                "try again later",
                retry_after_s=1,
            )

    def _enter(self, weight: int) -> None:
        self._open += weight
        if self._open:
            self._idle.clear()
        else:
            self._idle.set()

    async def _timed(self, scope: Scope, replay: "Replay", send: Send) -> None:
        answer = Answer(send)
        limit_s = self._limits.request_timeout_s
        task = asyncio.ensure_future(self._app(scope, replay, answer))
        stop = asyncio.ensure_future(self._cut_off.wait())
        try:
            await asyncio.wait({task, stop}, timeout=limit_s, return_when=_FIRST)
            if not task.done():
                await answer.fail(self._interruption(scope["path"]))
                replay.hang_up()
                await asyncio.wait({task}, timeout=_HANG_UP_S)
        finally:
            task.cancel()
            stop.cancel()
        if task.done() and not task.cancelled():
            task.result()

    def _interruption(self, path: str) -> HttpError:
        if self._cut_off.is_set():
            return HttpError(503, self._reason, retry_after_s=5)
        limit_s = self._limits.request_timeout_s
        _log.warning("%s took longer than %g s and was ended", path, limit_s)
        return HttpError(504, f"the request took longer than {limit_s:g} s and was ended")


class Answer:
    """Passes a response on, until `fail` ends it with an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._complete = self._is_stream = False

    async def __call__(self, message: AsgiMessage) -> None:
        """Pass one ASGI message on; nothing more once the response is complete."""
        if self._complete:
            return
        if message["type"] == "http.response.start":
            self._started = True
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: HttpError) -> None:
        """End with `error`: as a response, as a stream's last event, or by hanging up."""
        if self._complete:
            return
        self._complete = True
        if not self._started:
            await error.send(self._send)
        elif self._is_stream:
            event = b"data: " + error.body() + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


class Replay:
    """An ASGI receive that gives a body read before, then what really comes.

    `hang_up` makes it report that the client is gone. vLLM's routes end their work on that, but
    not when their task is cancelled.
    """

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._first: AsgiMessage | None = {"type": "http.request", "body": body}
        self._receive = receive
        self._hung_up = asyncio.Event()

    def hang_up(self) -> None:
        """Report a disconnect from now on."""
        self._hung_up.set()

    async def __call__(self) -> AsgiMessage:
        """The next message."""
        if self._first is not None:
            message, self._first = self._first, None
            return message
        real = asyncio.ensure_future(self._receive())
        ours = asyncio.ensure_future(self._hung_up.wait())
        try:
            await asyncio.wait({real, ours}, return_when=_FIRST)
            return real.result() if real.done() else {"type": "http.disconnect"}
        finally:
            real.cancel()
            ours.cancel()


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole request body.

    Raises:
        HttpError: 413 when it is, or says it will be, larger than `max_bytes`.
    """
    too_large = HttpError(413, f"the request body is larger than {max_bytes / 1e6:g} MB")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        await _discard(receive)
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the client hung up before the request was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > max_bytes:
            if more:
                await _discard(receive)
            raise too_large
    return b"".join(parts)


async def _discard(receive: Receive) -> None:
    """Read on for a while: a client that still sends would never see the answer."""
    size, ends = 0, time.monotonic() + _DISCARD_S
    while size < _DISCARD_BYTES and (left_s := ends - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left_s)
        except (asyncio.TimeoutError, TimeoutError):
            return
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def parse_json(raw: bytes) -> Any:
    """The body as JSON.

    Raises:
        HttpError: 400 when it is not JSON; NaN and Infinity are not.
    """

    def refuse(name: str) -> None:
        raise HttpError(400, f"{name} is not a JSON number")

    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the request body is not valid JSON: {error}") from error
