"""`/health`, `/ready` and `/ping`, answered from the moment the port is bound."""

import json
from collections.abc import Awaitable, Callable

from rufus_serve.leader.api.http_error import App, Receive, Scope, Send, send_json
from rufus_serve.protocol.messages import Status

_METHODS = ("GET", "HEAD")


class HealthRoutes:
    """Answers the probes itself and passes everything else on.

    `/health`: the process is alive, and the group serves or recovers within its deadline.
    `/ready`: a request sent now would be taken. `/ping` is `/health` for load balancers.
    """

    def __init__(
        self,
        app: App,
        *,
        status: Callable[[], Awaitable[Status | None]],
        obstacle: Callable[[], str],
    ) -> None:
        self._app = app
        self._status = status
        self._obstacle = obstacle
        """Why this process takes no request now; empty if it does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path = scope["path"]
        if path not in ("/health", "/ready", "/ping") or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        status = await self._status()
        good, detail = self._judge(path, status)
        state = "unknown" if status is None else status.state
        body = {"state": state, "detail": detail}
        await send_json(send, 200 if good else 503, json.dumps(body).encode())

    def _judge(self, path: str, status: Status | None) -> tuple[bool, str]:
        if status is None:
            return False, "the supervisor does not answer"
        if path != "/ready":
            return status.healthy, status.detail
        obstacle = self._obstacle()
        return status.ready and not obstacle, obstacle or status.detail
