"""The HTTP server on a port of its own, and requests to it byte by byte."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rufus_serve.config import ServeConfig
from rufus_serve.leader.api.http_error import App, Receive, Scope, Send, send_json
from rufus_serve.leader.api.http_server import HttpServer

Address = tuple[str, int]
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = {"header_timeout_s": 1.0, "write_timeout_s": 1.0, "max_header_kb": 16}
CHUNK = b"x" * 65536


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/health answers at once, /echo with the body; everything else streams without end."""
    if scope["path"] == "/health":
        await send_json(send, 200, b"{}")
        return
    if scope["path"] == "/echo":
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        await send_json(send, 200, b"".join(parts))
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(app: App = app, **http: Any) -> AsyncIterator[tuple[HttpServer, Address]]:
    sock = socket.create_server(("127.0.0.1", 0))
    config = ServeConfig.model_validate({"model": "m", "http": SLOW | http})
    server = HttpServer(app, config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server, sock.getsockname()
    finally:
        server.should_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await task


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def exchange(address: Address, data: bytes, **options: Any) -> bytes:
    """All that is answered to `data` until the server hangs up."""
    reader, writer = await asyncio.open_connection(*address, **options)
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
    try:
        return await reader.read()
    except OSError:
        return b""
    finally:
        writer.close()


async def health_s(address: Address) -> float:
    began = time.monotonic()
    closing = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert b" 200 " in await exchange(address, closing)
    return time.monotonic() - began
