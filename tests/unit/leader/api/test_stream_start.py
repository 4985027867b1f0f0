"""What a stream begins with, and what is answered when it begins with an error."""

import asyncio
import json

import pytest
from tests.unit.leader.api.asgi_call import Call, settle

from rufus_serve.leader.api.http_error import Receive, Scope, Send
from rufus_serve.leader.api.stream_start import StreamStart

STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
ERROR = b'data: {"error": {"message": "bad regex", "type": "BadRequestError", "code": 400}}\n\n'
CREATED = b'event: response.created\ndata: {"type": "response.created"}\n\n'


class Streaming:
    """An app that streams `parts`, and then fails if it is to."""

    def __init__(self, *parts: bytes, error: Exception | None = None) -> None:
        self.parts, self.error = parts, error
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(STREAM))
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if self.error:
            raise RuntimeError("response already started") from self.error
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b""})


def answered(app: Streaming) -> Call:
    async def scenario() -> Call:
        call = Call(StreamStart(app))
        await settle()
        app.go_on.set()
        await call.task
        return call

    return asyncio.run(scenario())


@pytest.mark.parametrize("parts", [(ERROR, b"data: [DONE]\n\n"), (CREATED, ERROR)])
def test_an_error_that_comes_first_is_the_status(parts: tuple[bytes, ...]) -> None:
    call = answered(Streaming(*parts))
    assert call.status == 400
    assert json.loads(call.text)["error"]["message"] == "bad regex"


def test_a_failure_before_the_first_token_is_the_status() -> None:
    call = answered(Streaming(CREATED, error=ValueError("bad schema")))
    assert (call.status, "bad schema" in call.text) == (400, True)


def test_a_good_stream_passes_at_once_and_unchanged() -> None:
    async def scenario() -> None:
        app = Streaming(CREATED, b"data: {}\n\n")
        call = Call(StreamStart(app))
        await settle()
        assert call.text == (CREATED + b"data: {}\n\n").decode()
        app.go_on.set()
        await call.task
        assert call.status == 200

    asyncio.run(scenario())


def test_an_error_later_in_a_stream_stays_an_event() -> None:
    call = answered(Streaming(b"data: {}\n\n", ERROR))
    assert (call.status, "bad regex" in call.text) == (200, True)


def test_a_stream_that_waits_begins_without_its_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rufus_serve.leader.api.stream_start._HOLD_S", 0.01)

    async def scenario() -> None:
        app = Streaming(b": keep-alive\n\n")
        call = Call(StreamStart(app))
        while not call.sent:
            await asyncio.sleep(0.005)
        assert call.status == 200
        app.go_on.set()
        await call.task

    asyncio.run(asyncio.wait_for(scenario(), 5))
