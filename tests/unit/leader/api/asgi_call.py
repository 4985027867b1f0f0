"""One hand-made request to an ASGI layer."""

import asyncio
import json

from rufus_serve.config.keys import ANONYMOUS, ApiKey
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.call import Call as ServedCall
from rufus_serve.leader.api.http_error import App, AsgiMessage, Scope

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


class Call:
    """One request in flight, and what was answered so far."""

    def __init__(
        self,
        app: App,
        body: object = b"",
        *,
        path: str = CHAT,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        key: ApiKey = ANONYMOUS,
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.incoming: asyncio.Queue[AsgiMessage] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": raw})
        self.sent: list[AsgiMessage] = []
        self.reads = asyncio.Event()
        self.reads.set()
        named = {"Content-Type": "application/json"} | (headers or {})
        pairs = [(k.lower().encode(), v.encode()) for k, v in named.items()]
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        CURRENT.set(ServedCall("id", key=key))
        self.task = asyncio.ensure_future(app(scope, self.incoming.get, self._send))

    async def _send(self, message: AsgiMessage) -> None:
        """As uvicorn's: waits while the peer does not read."""
        await self.reads.wait()
        self.sent.append(message)

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
