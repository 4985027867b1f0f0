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
        timer = asyncio.get_running_loop().call_later(_HOLD_S, held.give_up)
        try:
            await self._app(scope, receive, held)
        except Exception as error:
            refusal = _refusal(error)
            if not held.holding or refusal is None:
                raise
            held.drop()
            await refusal.send(send)
        finally:
            timer.cancel()
        await held.release()


class _Held:
    """A send that keeps a stream's first messages until one shows that the stream is good."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kept: list[AsgiMessage] = []
        self._open = self._replaced = False

    @property
    def holding(self) -> bool:
        """Whether nothing was sent yet of a stream that began."""
        return bool(self._kept) and not self._open

    def give_up(self) -> None:
        """Let the next message through, and what was kept before it."""
        self._open = True

    def drop(self) -> None:
        """Forget what was kept."""
        self._kept, self._open = [], True

    async def release(self) -> None:
        """Send what was kept."""
        self._open = True
        kept, self._kept = self._kept, []
        for message in kept:
            await self._send(message)

    async def __call__(self, message: AsgiMessage) -> None:
        if self._replaced:
            return
        if not self._open and message["type"] == "http.response.start":
            self._open = not _is_stream(message)
        if self._open:
            await self.release()
            await self._send(message)
            return
        self._kept.append(message)
        body = message.get("body", b"")
        if not body or body.startswith(_PREAMBLE):
            return
        refusal = _refusal_event(body)
        if refusal is None:
            await self.release()
        else:
            self._replaced = True
            self.drop()
            await refusal.send(self._send)


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
