"""A server of `/v1/files` and `/v1/batches` over a made-up model, and what its clients do."""

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai

from rufus_serve.config import ServeConfig
from rufus_serve.config.keys import ApiKey, fingerprint
from rufus_serve.leader.api.access import Access
from rufus_serve.leader.api.audit import Recorder
from rufus_serve.leader.api.batches.asgi_sender import bearing
from rufus_serve.leader.api.batches.desk import BatchDesk
from rufus_serve.leader.api.batches.routes import BatchRoutes
from rufus_serve.leader.api.bodies import read_body
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send, send_json
from rufus_serve.leader.api.http_server import HttpServer
from rufus_serve.leader.api.key_ring import KeyRing

CHAT = "/v1/chat/completions"
KEYS = [ApiKey(id=name, sha256=fingerprint(name), priority=2) for name in ("alice", "bob")]


class Model:
    """Answers a chat with its own words; `gate` holds back all but the first few."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.callers: set[tuple[str, int]] = set()
        self.free, self.full = 10_000, 0
        self.cut_off = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(scope, receive, max_bytes=10_000, deadline_s=5)
        text = json.loads(raw)["messages"][0]["content"]
        call = CURRENT.get()
        assert call is not None
        self.callers.add((call.key.id, call.key.priority))
        if self.full:
            self.full -= 1
            await HttpError(429, "full").send(send)
            return
        if self.free <= 0:
            await receive()  # returns once the asker hangs up
            self.cut_off += 1
            return
        self.free -= 1
        self.asked[text] += 1
        if text == "refuse":
            await HttpError(400, "no").send(send)
            return
        body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        await send_json(send, 200, json.dumps(body).encode())


class Site:
    """A server over a folder, and clients of two keys."""

    def __init__(self, folder: Path, model: Model, **batch: Any) -> None:
        self.keys = KeyRing(folder / "keys")
        config = {"model": "m", "batch": {"folder": str(folder / "batch"), **batch}}
        self.config = ServeConfig.model_validate(config)

        def find_app(key_id: str) -> App | None:
            key = self.keys.named(key_id)
            return Recorder(bearing(model, key), None) if key else None

        self.desk = BatchDesk(self.config.batch, find_app, places=4, max_body_bytes=1000)
        routes = BatchRoutes(model, self.desk, self.config.batch)
        self.app = Recorder(Access(routes, self.keys, docs=False), None)

    def client(self, key: str = "alice") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[openai.AsyncOpenAI]:
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = HttpServer(self.app, self.config)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await self.desk.open()
        async with self.client() as client:
            yield client
        await self.desk.close()
        server.should_exit = True
        await task


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def lines(*texts: str, **more: Any) -> bytes:
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    return b"".join(
        json.dumps({"custom_id": f"id-{i}", "method": "POST", "url": CHAT, "body": body} | more)
        .encode() + b"\n"
        for i, body in enumerate(bodies)
    )  # fmt: skip


async def begin(client: openai.AsyncOpenAI, content: bytes, **more: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", **more
    )


async def until(client: openai.AsyncOpenAI, batch_id: str, *states: str) -> Any:
    while (batch := await client.batches.retrieve(batch_id)).status not in states:
        await asyncio.sleep(0.01)
    return batch


async def answers(client: openai.AsyncOpenAI, file_id: str) -> dict[str, Any]:
    text = (await client.files.content(file_id)).text
    found = [json.loads(line) for line in text.splitlines()]
    assert len({line["custom_id"] for line in found}) == len(found)
    return {line["custom_id"]: line for line in found}
