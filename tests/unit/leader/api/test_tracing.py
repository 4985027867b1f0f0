"""Spans of made-up requests, in memory."""

import asyncio
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.unit.leader.api.asgi_call import CHAT
from tests.unit.leader.api.asgi_call import Call as Request

from rufus_serve.config.schema import TracingConfig
from rufus_serve.leader.api.call import CURRENT, Call
from rufus_serve.leader.api.http_error import App, Receive, Scope, Send, send_json
from rufus_serve.leader.api.tracing import Tracing, tracing_of
from rufus_serve.leader.step_counts import FollowerPart, StepSample

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced:
    """A tracing layer whose spans are kept here."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracing = Tracing(provider)

    def ask(self, app: App, path: str = CHAT, **headers: str) -> None:
        async def scenario() -> None:
            await Request(self.tracing.layer(app), {}, path=path, headers=headers).task

        asyncio.run(scenario())

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._kept.get_finished_spans()}


def call() -> Call:
    found = CURRENT.get()
    assert found is not None
    return found


async def served(scope: Scope, receive: Receive, send: Send) -> None:
    now = time.monotonic()
    call().saw_times(queued=now - 4, scheduled=now - 3, first=now - 2, last=now)
    call().status, call().output_tokens = 200, 7
    await send_json(send, 200, b"{}")


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    call().status = 503
    await send_json(send, 503, b"{}")


def test_a_request_has_its_times_in_the_engine_below_the_callers_span() -> None:
    traced = Traced()
    traced.ask(served, **HEADERS)
    whole = traced.spans[f"POST {CHAT}"]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.usage.output_tokens"] == 7
    for name, seconds in (("queue", 1), ("prefill", 1), ("decode", 2)):
        part = traced.spans[name]
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
        assert (part.end_time or 0) - (part.start_time or 0) == pytest.approx(seconds * 1e9, abs=9)
    assert traced.spans["queue"].end_time == pytest.approx(traced.spans["prefill"].start_time, 1e-9)


def test_a_step_is_told_with_each_followers_part_to_the_requests_in_it_alone() -> None:
    traced = Traced()
    sample = StepSample(
        step_id=9, epoch=2, phase="decode", sent=10.0, received=10.5,
        requests=("chatcmpl-1-0a1b2c3d~2", "other-00000000"),
        followers=(FollowerPart(0, 10.1, 0.3, 0.1), FollowerPart(1, 10.2, 0.2, 0.0)),
    )  # fmt: skip

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        call().engine_ids.append("chatcmpl-1")
        traced.tracing.stepped(3, [sample])
        traced.tracing.happened("recovering, epoch 2")
        await send_json(send, 200, b"{}")

    traced.ask(app, **HEADERS)
    traced.tracing.stepped(3, [sample])  # nobody is open any more
    step, second = traced.spans["step decode"], traced.spans["follower 1: execute"]
    assert step.attributes == {"rufus.group": 3, "rufus.epoch": 2, "rufus.step_id": 9}
    assert second.parent is not None
    assert second.parent.span_id == step.context.span_id
    assert second.attributes == {"rufus.wait_s": 0.0}
    assert len(traced.spans) == 4
    (event,) = traced.spans[f"POST {CHAT}"].events
    assert event.name == "recovering, epoch 2"


def test_failures_are_marked_and_other_routes_have_no_span() -> None:
    traced = Traced()
    traced.ask(failing)
    assert not traced.spans[f"POST {CHAT}"].status.is_ok
    traced.ask(served, path="/v1/models")
    assert len(traced.spans) == 1


def test_a_ratio_of_zero_traces_only_what_the_caller_traces() -> None:
    kept = InMemorySpanExporter()
    tracing = tracing_of(TracingConfig(endpoint="http://collector", ratio=0.0))
    assert tracing is not None
    tracing._provider.add_span_processor(SimpleSpanProcessor(kept))

    async def scenario() -> None:
        for headers in ({}, HEADERS):
            await Request(tracing.layer(served), {}, headers=headers).task

    asyncio.run(scenario())
    assert {f"{span.context.trace_id:032x}" for span in kept.get_finished_spans()} == {TRACE}
    assert tracing_of(TracingConfig()) is None
