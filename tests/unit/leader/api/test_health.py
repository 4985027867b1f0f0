import asyncio
import json
from typing import Any

import pytest

from rufus_serve.leader.api.health import HealthRoutes
from rufus_serve.leader.api.http_error import AsgiMessage, Receive, Scope, Send
from rufus_serve.protocol.messages import Status

READY = Status(state="ready", epoch=1, healthy=True, ready=True)
RECOVERING = Status(state="recovering", epoch=2, healthy=True, ready=False, detail="regrouping")
FAILED = Status(state="failed", epoch=2, healthy=False, ready=False)


def ask(path: str, status: Status | None, obstacle: str = "") -> tuple[int, Any]:
    sent: list[AsgiMessage] = []

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("health must not reach vLLM")

    async def answer() -> Status | None:
        return status

    async def send(message: AsgiMessage) -> None:
        sent.append(message)

    async def receive() -> AsgiMessage:
        return {"type": "http.disconnect"}

    routes = HealthRoutes(behind, status=answer, obstacle=lambda: obstacle)
    asyncio.run(routes({"type": "http", "method": "GET", "path": path}, receive, send))
    return int(sent[0]["status"]), json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("status", "health", "ready"),
    [(READY, 200, 200), (RECOVERING, 200, 503), (FAILED, 503, 503), (None, 503, 503)],
)
def test_health_follows_healthy_and_ready_follows_ready(
    status: Status | None, health: int, ready: int
) -> None:
    assert ask("/health", status)[0] == ask("/ping", status)[0] == health
    assert ask("/ready", status)[0] == ready


def test_a_process_that_takes_no_request_is_healthy_but_not_ready() -> None:
    assert ask("/health", READY, "draining")[0] == 200
    assert ask("/ready", READY, "draining") == (503, {"state": "ready", "detail": "draining"})


def test_the_body_says_state_and_detail() -> None:
    assert ask("/ready", RECOVERING)[1] == {"state": "recovering", "detail": "regrouping"}
    assert ask("/ready", None)[1]["detail"] == "the supervisor does not answer"
