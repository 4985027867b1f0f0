"""Asks the lines of a batch of our own server, as the key that made it."""

import asyncio
from collections.abc import Callable

import msgspec

from rufus_serve.batch.lines import BatchLine, Reply
from rufus_serve.batch.runner import NotNow
from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.http_error import App, AsgiMessage, Receive, Scope, Send

_LATER = 50
"""Added to a key's priority: whoever waits for an answer comes first."""
_LAST = 100
_BUSY = (429, 503)


class KeyGone(Exception):
    """The key that a batch was made with is in force no more."""


def bearing(app: App, key: ApiKey) -> App:
    """`app`, called as the owner of `key`, after all who wait for their answers."""
    later = key.model_copy(update={"priority": min(_LAST, key.priority + _LATER)})

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        call = CURRENT.get()
        assert call is not None
        call.key = later
        await app(scope, receive, send)

    return called


class AsgiSender:
    """Asks our own server for one batch; event loop only."""

    def __init__(self, find_app: Callable[[], App | None], places: asyncio.Semaphore) -> None:
        """`find_app` gives what to ask, None if the key is gone; `places` bounds all batches."""
        self._find_app, self._places = find_app, places
        self._hung_up = asyncio.Event()

    def hang_up(self) -> None:
        """End what is under way, as a client does that closes its connection."""
        self._hung_up.set()

    async def __call__(self, line: BatchLine) -> Reply:
        """Ask one line.

        Raises:
            NotNow: the server is full or ends, or we hung up.
            KeyGone: nothing may be asked any more.
        """
        async with self._places:
            app = self._find_app()
            if app is None:
                raise KeyGone
            if self._hung_up.is_set():
                raise NotNow("hung up")
            answer = _Answer()
            await app(_scope(line), _Body(line, self._hung_up), answer.send)
        if self._hung_up.is_set():
            raise NotNow("hung up")  # what was answered may be cut short
        return answer.reply()


class _Body:
    """An ASGI receive: the line's body, then a disconnect once we hang up."""

    def __init__(self, line: BatchLine, hung_up: asyncio.Event) -> None:
        self._raw: bytes | None = msgspec.json.encode(line.body)
        self._hung_up = hung_up

    async def __call__(self) -> AsgiMessage:
        raw, self._raw = self._raw, None
        if raw is not None:
            return {"type": "http.request", "body": raw, "more_body": False}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}


class _Answer:
    def __init__(self) -> None:
        self._status, self._headers, self._parts = 0, dict[bytes, bytes](), list[bytes]()

    async def send(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
        else:
            self._parts.append(message.get("body", b""))

    def reply(self) -> Reply:
        if self._status in (0, *_BUSY):
            after = self._headers.get(b"retry-after", b"0")
            after_s = float(after) if after.isdigit() else 0.0
            raise NotNow(f"HTTP {self._status}", after_s=after_s)
        raw = b"".join(self._parts)
        try:
            body = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            body = {"error": {"message": raw[:1000].decode(errors="replace")}}
        request_id = self._headers.get(b"x-request-id", b"").decode("latin-1")
        return Reply(status=self._status, request_id=request_id, body=body)


def _scope(line: BatchLine) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": line.url,
        "raw_path": line.url.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"batch"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {},
    }
