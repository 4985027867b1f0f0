"""Holds a stream's beginning back until it is known whether the request can be served.

vLLM answers a streamed request with status 200 before the engine has looked at it, and tells of
a regular expression that does not parse in an error event. Clients expect a status for that.
"""

import asyncio
import json
from typing import Any

from rufus_serve.leader.api.http_error import App, AsgiMessage, HttpError, Receive, Scope, Send

_HOLD_S = 5.0
"""A stream that waits longer for a place begins without its first token."""
_PREAMBLE = (
    b"event: response.created", b"event: response.in_progress", b"event: message_start",
    b"event: ping", b":",
)  # fmt: skip
"""What streams begin with whether or not they fail then."""


class StreamStart:
    """Turns an error that comes first in a stream into the response's status."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        held = _Held(send)
        patience = asyncio.ensure_future(held.release_after(_HOLD_S))
        try:
            await self._app(scope, receive, held)
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None or not await held.replace(refusal):
                raise
        finally:
            patience.cancel()
        await held.release()


class _Held:
    """A send that keeps a stream's first messages until one shows that the stream is good."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kept: list[AsgiMessage] = []
        self._is_open = self._is_replaced = False
        self._turn = asyncio.Lock()

    async def __call__(self, message: AsgiMessage) -> None:
        """Send or keep one ASGI message."""
        if self._is_replaced:
            return
        if not self._is_open and not self._must_keep(message):
            body = message.get("body", b"")
            refusal = _refusal_event(body) if self._kept else None
            if refusal is not None and await self.replace(refusal):
                return
            await self.release()
        async with self._turn:
            if self._is_open:
                await self._send(message)
            else:
                self._kept.append(message)

    async def release(self) -> None:
        """Send what was kept, and let all that follows through."""
        async with self._turn:
            self._is_open = True
            kept, self._kept = self._kept, []
            for message in kept:
                await self._send(message)

    async def release_after(self, delay_s: float) -> None:
        """Release a stream that says nothing for so long."""
        await asyncio.sleep(delay_s)
        # Cancelled half-way, it would lose messages.
        await asyncio.shield(self.release())

    async def replace(self, refusal: HttpError) -> bool:
        """Answer with `refusal` instead of what was kept; False if something was sent already."""
        async with self._turn:
            if self._is_open or not self._kept:
                return False
            self._is_open = self._is_replaced = True
            self._kept = []
            await refusal.send(self._send)
            return True

    def _must_keep(self, message: AsgiMessage) -> bool:
        if message["type"] == "http.response.start":
            return _is_stream(message)
        body = message.get("body", b"")
        return bool(self._kept) and (not body or body.startswith(_PREAMBLE))


def _is_stream(start: AsgiMessage) -> bool:
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return bool(kind.startswith(b"text/event-stream"))


def _refusal_event(event: bytes) -> HttpError | None:
    """The client's error that a stream's first event tells of, if it is one."""
    data = event.partition(b"data: ")[2].strip()
    if b'"error"' not in data[:200]:
        return None
    try:
        error: Any = json.loads(data)["error"]
        status, message = error.get("code"), error["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(status, int):
        status = 400 if error.get("type") == "invalid_request_error" else 0
    return HttpError(status, message, error.get("param")) if 400 <= status < 600 else None


def _refusal(error: BaseException) -> HttpError | None:
    """The client's error that made an app fail, told from its class; vLLM's name `parameter`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValueError) or hasattr(cause, "parameter"):
            return HttpError(400, str(cause), getattr(cause, "parameter", None))
        cause = cause.__cause__ or cause.__context__
    return None
