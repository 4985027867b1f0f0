"""`/overview`, its stream, and the files of the page at `/ui`."""

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files

import msgspec

from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send, send_json
from rufus_serve.leader.api.overview.board import Board

_EVERY_S = 1.0
_MOST_WATCHERS = 64
_KINDS = {".html": b"text/html", ".js": b"text/javascript", ".css": b"text/css"}
_GUARDS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
PAGE = "ui"
"""Folder of the page's files, beside this module."""


@cache
def page_files() -> dict[str, tuple[bytes, bytes]]:
    """Content type and content by path below `/ui`."""
    found = {}
    folder = files(__package__) / PAGE
    for place in (folder, folder / "vendor"):
        below = "" if place == folder else "vendor/"
        for file in place.iterdir():
            kind = _KINDS.get(f".{file.name.rpartition('.')[2]}")
            if kind:
                found[f"{below}{file.name}"] = (kind, file.read_bytes())
    return found


class OverviewRoutes:
    """Answers its own routes and passes everything else on."""

    def __init__(self, app: App, board: Board, *, page: bool) -> None:
        """`page`: whether there is one at `/ui`."""
        self._app, self._board, self._has_page = app, board, page
        self._closed = asyncio.Event()
        self._num_watchers = 0

    def close(self) -> None:
        """End all streams."""
        self._closed.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a listed route."""
        path = scope["path"]
        if path == "/overview":
            await self._now(send)
        elif path == "/overview/events":
            await self._events(receive, send)
        elif path == "/ui" or path.startswith("/ui/"):
            await self._page(path, send)
        else:
            await self._app(scope, receive, send)

    async def _page(self, path: str, send: Send) -> None:
        if not self._has_page:
            await HttpError(404, f"{path[:200]} is off; the setting http.ui turns it on").send(send)
        elif path == "/ui":
            # Its files are found relative to the page, whatever prefix a proxy adds.
            await _send(send, 307, b"", [(b"location", b"ui/")])
        elif (file := page_files().get(path.removeprefix("/ui/") or "index.html")) is None:
            await HttpError(404, f"{path[:200]} is no file of the page").send(send)
        else:
            kind, content = file
            await _send(
                send, 200, content, [(b"content-type", kind + b"; charset=utf-8"), *_GUARDS]
            )

    async def _now(self, send: Send) -> None:
        overview = self._board.overview()
        if overview is None:
            await HttpError(503, "the supervisor does not answer", retry_after_s=1).send(send)
            return
        await send_json(send, 200, msgspec.json.encode(overview))

    async def _events(self, receive: Receive, send: Send) -> None:
        if self._num_watchers >= _MOST_WATCHERS:
            error = HttpError(503, f"{_MOST_WATCHERS} watch already, the most", retry_after_s=5)
            await error.send(send)
            return
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._num_watchers += 1
        try:
            async for event in self._each_second(receive):
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._num_watchers -= 1

    async def _each_second(self, receive: Receive) -> AsyncIterator[bytes]:
        """An event a second, until the client hangs up or we close."""
        gone = asyncio.ensure_future(_disconnected(receive))
        closed = asyncio.ensure_future(self._closed.wait())
        try:
            while not (gone.done() or closed.done()):
                overview = self._board.overview()
                if overview is not None:
                    yield b"data: " + msgspec.json.encode(overview) + b"\n\n"
                ends = {gone, closed}
                await asyncio.wait(ends, timeout=_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            closed.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [length, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
