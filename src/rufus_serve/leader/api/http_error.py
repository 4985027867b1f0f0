"""Errors in OpenAI's form, sent from plain ASGI middleware."""

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from rufus_serve.leader.api.call import CURRENT

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}


@dataclass(eq=False)
class HttpError(Exception):
    """A refusal; `param` names the field at fault, if one is."""

    status: int
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    reason: str = ""
    """A word for the metrics, where the status does not say enough."""

    @property
    def phrase(self) -> str:
        """The status in HTTP's words."""
        return HTTPStatus(self.status).phrase

    def body(self) -> bytes:
        """The JSON body that OpenAI's clients understand."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, self.phrase),
            "param": self.param,
            "code": self.status,
        }
        return json.dumps({"error": error}).encode()

    async def send(self, send: Send) -> None:
        """Answer with this error."""
        call = CURRENT.get()
        if call is not None:
            call.refusal = self.reason
        headers = list(self.headers)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        await send_json(send, self.status, self.body(), headers=headers)


async def send_json(
    send: Send, status: int, body: bytes, *, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with a complete JSON body."""
    length = (b"content-length", str(len(body)).encode())
    kind = (b"content-type", b"application/json")
    start = {"type": "http.response.start", "status": status, "headers": [kind, length, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
