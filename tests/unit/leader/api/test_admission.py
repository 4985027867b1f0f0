"""The layers in front of vLLM's app, driven by hand-made ASGI calls."""

import asyncio
import json
from typing import Any

import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.leader.api.admission import Admission, ApiKeys, parse_json
from rufus_serve.leader.api.http_error import App, AsgiMessage, HttpError, Receive, Scope, Send

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


def config(**limits: Any) -> ServeConfig:
    return ServeConfig.model_validate({"model": "m", "max_num_seqs": 1, "limits": limits})


class Call:
    """One request in flight, and what was answered so far."""

    def __init__(
        self, app: App, body: object, *, path: str = CHAT, headers: dict[str, str] | None = None
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._incoming: asyncio.Queue[AsgiMessage] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": raw})
        self.sent: list[AsgiMessage] = []
        pairs = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": pairs}
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: AsgiMessage) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


class Model:
    """Stands for vLLM's app: answers when told to, and gives up when the client does."""

    def __init__(self, *, stream: bool = False) -> None:
        self.finish = asyncio.Event()
        self.stream = stream
        self.bodies: list[bytes] = []
        self.disconnects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        kind = b"text/event-stream" if self.stream else b"application/json"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        if self.stream:
            await send(start)
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        gone = asyncio.ensure_future(receive())
        done = asyncio.ensure_future(self.finish.wait())
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.disconnects += 1
        elif not self.stream:
            await send(start)
        if done.done():
            await send({"type": "http.response.body", "body": b"end"})
        gone.cancel()
        done.cancel()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_body_reaches_the_app_unchanged_and_the_answer_comes_back() -> None:
    async def scenario() -> None:
        model = Model()
        call = Call(Admission(model, config()), BODY)
        await settle()
        model.finish.set()
        await call.task
        assert json.loads(model.bodies[0]) == BODY
        assert (call.status, call.text) == (200, "end")

    asyncio.run(scenario())


def test_a_stream_passes_through_before_it_is_complete() -> None:
    async def scenario() -> None:
        model = Model(stream=True)
        call = Call(Admission(model, config()), BODY)
        await settle()
        assert call.text == "data: 1\n\n"
        model.finish.set()
        await call.task

    asyncio.run(scenario())


def test_more_requests_than_fit_are_refused_at_once_until_one_ends() -> None:
    async def scenario() -> None:
        model = Model()
        admission = Admission(model, config(max_waiting=1))
        first, second = Call(admission, BODY), Call(admission, BODY)
        await settle()
        third = Call(admission, BODY)
        await third.task
        assert third.status == 429
        assert (b"retry-after", b"1") in third.sent[0]["headers"]
        model.finish.set()
        await asyncio.gather(first.task, second.task)
        fourth = Call(admission, BODY)
        await fourth.task
        assert fourth.status == 200

    asyncio.run(scenario())


def test_a_request_for_more_sequences_than_can_ever_wait_is_refused_for_good() -> None:
    async def scenario() -> None:
        call = Call(Admission(Model(), config(max_waiting=1)), BODY | {"n": 3})
        await call.task
        assert call.status == 400

    asyncio.run(scenario())


def test_draining_refuses_new_requests_and_ends_when_the_open_ones_do() -> None:
    async def scenario() -> None:
        model = Model()
        admission = Admission(model, config())
        call = Call(admission, BODY)
        await settle()
        admission.drain()
        late = Call(admission, BODY)
        await late.task
        assert late.status == 503
        assert any(name == b"retry-after" for name, _ in late.sent[0]["headers"])
        idle = asyncio.ensure_future(admission.idle())
        await settle()
        assert not idle.done()
        model.finish.set()
        await asyncio.gather(call.task, idle)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_past_its_time_ends_with_an_error_and_frees_the_model(stream: bool) -> None:
    async def scenario() -> None:
        model = Model(stream=stream)
        call = Call(Admission(model, config(request_timeout_s=0.01)), BODY)
        await call.task
        assert model.disconnects == 1
        assert "took longer than 0.01 s" in call.text
        assert call.status == (200 if stream else 504)

    asyncio.run(scenario())


def test_cutting_off_ends_open_requests_with_the_reason() -> None:
    async def scenario() -> None:
        model = Model(stream=True)
        admission = Admission(model, config())
        call = Call(admission, BODY)
        await settle()
        admission.cut_off("the group failed")
        await call.task
        assert call.text.endswith("\n\n")
        assert "the group failed" in call.text
        assert model.disconnects == 1

    asyncio.run(scenario())


def test_a_body_over_the_limit_is_refused_by_size() -> None:
    async def scenario() -> None:
        admission = Admission(Model(), config(max_body_mb=0.0001))
        long = Call(admission, b"x" * 200)
        announced = Call(admission, b"", headers={"Content-Length": "1000000"})
        await asyncio.gather(long.task, announced.task)
        assert long.status == announced.status == 413

    asyncio.run(scenario())


def test_other_routes_pass_without_being_counted_or_read() -> None:
    async def scenario() -> None:
        model = Model()
        admission = Admission(model, config())
        model.finish.set()
        call = Call(admission, b"not json", path="/v1/models")
        await call.task
        assert call.status == 200
        assert admission.num_open == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": NaN}', b"[-Infinity]", b"\xff", b"[" * 99_999])
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        parse_json(raw)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {}, 401),
        ("/v1/models", {"Authorization": "Bearer wrong"}, 401),
        ("/metrics", {}, 401),
        ("/v1/models", {"Authorization": "Bearer second"}, 200),
        ("/v1/messages", {"X-Api-Key": "first"}, 200),
        ("/health", {}, 200),
        ("/ready", {}, 200),
        ("/ping", {}, 200),
    ],
)
def test_keys_guard_every_route_but_health(path: str, headers: dict[str, str], status: int) -> None:
    async def scenario() -> None:
        model = Model()
        model.finish.set()
        call = Call(ApiKeys(model, ["first", "second"]), BODY, path=path, headers=headers)
        await call.task
        assert call.status == status

    asyncio.run(scenario())
