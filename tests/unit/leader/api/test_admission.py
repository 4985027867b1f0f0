"""The layers in front of vLLM's app, driven by hand-made ASGI calls."""

import asyncio
import json
from typing import Any

import pytest
from tests.unit.leader.api.asgi_call import BODY, Call, settle

from rufus_serve.config import ServeConfig
from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.admission import Admission
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.http_error import Receive, Scope, Send


def config(**limits: Any) -> ServeConfig:
    http = {"body_timeout_s": limits.pop("body_timeout_s", 60)}
    return ServeConfig.model_validate(
        {"model": "m", "max_num_seqs": 1, "limits": limits, "http": http}
    )


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


def test_a_group_more_takes_as_many_requests_more() -> None:
    async def scenario() -> None:
        model = Model()
        admission = Admission(model, config(max_waiting=1))
        admission.resize(num_groups=2)
        calls = [Call(admission, BODY) for _ in range(4)]
        await calls[3].task
        assert calls[3].status == 429
        model.finish.set()
        await asyncio.gather(*(call.task for call in calls))
        assert [call.status for call in calls] == [200, 200, 200, 429]

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


def test_counting_tokens_has_a_bound_of_its_own_and_counts_as_a_request() -> None:
    async def scenario() -> None:
        model = Model()
        model.finish.set()
        admission = Admission(model, config(max_tokenize_kb=1))
        for size, status in ((2000, 413), (100, 200), (100, 200), (100, 429)):
            body = b'{"prompt": "%s"}' % (b"x" * size)
            call = Call(admission, body, path="/tokenize", key=ALICE)
            await call.task
            assert call.status == status
        assert admission.num_open == 0

    asyncio.run(scenario())


def test_reading_routes_pass_without_being_counted_or_read() -> None:
    async def scenario() -> None:
        model = Model()
        admission = Admission(model, config())
        model.finish.set()
        call = Call(admission, b"not json", path="/v1/models", method="GET")
        await call.task
        assert call.status == 200
        assert admission.num_open == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_loses_its_place_when_its_time_is_over(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rufus_serve.leader.api.admission._HANG_UP_S", 0.05)

    async def scenario() -> None:
        admission = Admission(Model(stream=stream), config(request_timeout_s=0.05))
        call = Call(admission, BODY)
        call.reads.clear()
        await asyncio.wait_for(call.task, 1)
        assert admission.num_open == 0

    asyncio.run(scenario())


def test_cutting_off_does_not_wait_for_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rufus_serve.leader.api.admission._HANG_UP_S", 0.05)

    async def scenario() -> None:
        model = Model(stream=True)
        admission = Admission(model, config())
        call = Call(admission, BODY)
        call.reads.clear()
        await settle()
        admission.cut_off("the group failed")
        await asyncio.wait_for(asyncio.gather(call.task, admission.idle()), 1)

    asyncio.run(scenario())


def test_a_body_that_drips_in_is_given_up() -> None:
    async def scenario() -> None:
        call = Call(Admission(Model(), config(body_timeout_s=0.05)), b"{")
        call.incoming._queue[0]["more_body"] = True  # type: ignore[attr-defined]
        await asyncio.wait_for(call.task, 1)
        assert call.status == 408
        assert call.headers["connection"] == "close"

    asyncio.run(scenario())


def test_a_batch_weighs_its_conversations() -> None:
    async def scenario() -> None:
        admission = Admission(Model(), config(max_waiting=3))
        body = {"messages": [BODY["messages"]] * 5}
        call = Call(admission, body, path="/v1/chat/completions/batch")
        await call.task
        assert (call.status, "5 sequences" in call.text) == (400, True)

    asyncio.run(scenario())


def test_a_large_max_tokens_is_capped_only_if_so_configured() -> None:
    async def asked_for(**limits: Any) -> Any:
        model = Model()
        model.finish.set()
        admission = Admission(model, config(**limits))
        admission.max_model_len = 100
        await Call(admission, BODY | {"max_tokens": 65535}).task
        return json.loads(model.bodies[0])["max_tokens"]

    assert asyncio.run(asked_for()) == 65535
    assert asyncio.run(asked_for(cap_max_tokens=True)) == 100


ALICE = ApiKey(id="alice", sha256="a" * 64, models=("m",), max_n=2, requests_per_minute=2)


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [({"model": "other"}, 403, "'other'"), ({"n": 3}, 400, "n must be at most 2")],
)
def test_a_key_is_held_to_its_models_and_its_n(
    fields: dict[str, Any], status: int, said: str
) -> None:
    async def scenario() -> None:
        call = Call(Admission(Model(), config()), BODY | fields, key=ALICE)
        await call.task
        assert call.status == status
        assert said in call.text

    asyncio.run(scenario())


def test_the_third_request_of_two_a_minute_is_429_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        model = Model()
        model.finish.set()
        admission = Admission(model, config())
        first = Call(admission, BODY, key=ALICE)
        await first.task
        assert first.status == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        second = Call(admission, BODY, key=ALICE)
        await second.task
        third = Call(admission, BODY, key=ALICE)
        await third.task
        assert third.status == 429
        assert (call := CURRENT.get()) is not None
        assert call.refusal == "key_requests"
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        assert 0 < int(third.headers["retry-after"]) <= 60

    asyncio.run(scenario())


def test_tokens_are_counted_when_a_request_is_over() -> None:
    key = ApiKey(id="bob", sha256="b" * 64, tokens_per_minute=10)

    class Spending(Model):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            call = CURRENT.get()
            assert call
            call.prompt_tokens, call.output_tokens = 8, 5
            await super().__call__(scope, receive, send)

    async def scenario() -> None:
        model = Spending()
        model.finish.set()
        admission = Admission(model, config())
        for status in (200, 429):
            call = Call(admission, BODY, key=key)
            await call.task
            assert call.status == status
        assert call.headers["x-ratelimit-remaining-tokens"] == "0"

    asyncio.run(scenario())
