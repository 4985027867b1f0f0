"""OpenTelemetry spans of requests: from HTTP through queue, prefill and decode to the followers.

A request's own span has children for its times in the engine, and for some of its steps: the
engine tells of one step of each phase with every beat. What happens to a group is an event on
all spans that are open then.
"""

import re
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rufus_serve import __version__
from rufus_serve.config.schema import TracingConfig
from rufus_serve.leader.api.call import CURRENT, Call
from rufus_serve.leader.api.http_error import App, Receive, Scope, Send
from rufus_serve.leader.api.routes import ROUTES
from rufus_serve.leader.step_counts import StepSample

_FIRST_ERROR = 500
_NAME_END = re.compile(r"-[0-9a-f]{8}(~\d+)?$")
"""What stands behind a request's name in the engine: vLLM's random part, our `Flight.wire_id`'s."""


class Tracing:
    """Event loop only; spans are sent from a thread of OpenTelemetry's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rufus_serve", __version__)
        self._context = TraceContextTextMapPropagator()
        self._open: dict[int, tuple[Span, Call]] = {}

    def export_to(self, endpoint: str) -> None:
        """Send spans there from now on; it starts a thread, so not before engines are forked."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))

    def layer(self, app: App) -> App:
        """`app`, with a span around each inference request."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            route, call = ROUTES.get(scope["path"]), CURRENT.get()
            if route is None or not route.takes_place or call is None:
                await app(scope, receive, send)
                return
            span = self._begin(scope)
            self._open[id(call)] = span, call
            try:
                await app(scope, receive, send)
            finally:
                del self._open[id(call)]
                self._end(span, call)

        return traced

    def happened(self, what: str) -> None:
        """Something that befell all requests under way."""
        for span, _ in self._open.values():
            span.add_event(what)

    def stepped(self, group: int, samples: Sequence[StepSample]) -> None:
        """Steps that a group's engine took; they belong to the requests in them."""
        named = {name: span for span, call in self._open.values() for name in call.engine_ids}
        for sample in samples:
            names = {_NAME_END.sub("", each) for each in sample.requests} | {*sample.requests}
            for span in {id(named[name]): named[name] for name in names & named.keys()}.values():
                if span.is_recording():
                    self._step(span, group, sample)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _begin(self, scope: Scope) -> Span:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        return self._tracer.start_span(
            f"{scope['method']} {scope['path']}",
            context=self._context.extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "http.route": scope["path"]},
        )

    def _end(self, span: Span, call: Call) -> None:
        if span.is_recording():
            times = call.times
            moments = (times.queued, times.scheduled, times.first_token, times.last_token)
            if all(moments):
                for name, began, ended in zip(_PARTS, moments, moments[1:], strict=False):
                    self._child(set_span_in_context(span), name, began, ended)
            span.set_attributes(
                {
                    "http.response.status_code": call.status,
                    "gen_ai.request.model": call.model,
                    "gen_ai.usage.input_tokens": call.prompt_tokens,
                    "gen_ai.usage.output_tokens": call.output_tokens,
                    "rufus.request_id": call.request_id,
                    "rufus.key_id": call.key.id,
                }
            )
            if call.status >= _FIRST_ERROR or not call.status:
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _step(self, span: Span, group: int, sample: StepSample) -> None:
        step = self._child(
            set_span_in_context(span), f"step {sample.phase}", sample.sent, sample.received,
            {"rufus.group": group, "rufus.epoch": sample.epoch, "rufus.step_id": sample.step_id},
        )  # fmt: skip
        for part in sample.followers:
            ended = part.began + part.compute_s
            name = f"follower {part.node_rank}: execute"
            self._child(step, name, part.began, ended, {"rufus.wait_s": part.wait_s})

    def _child(
        self,
        parent: Context,
        name: str,
        began: float,
        ended: float,
        attributes: dict[str, Any] | None = None,
    ) -> Context:
        """A span from one monotonic second to another; the context below it."""
        since_epoch = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            name, context=parent, attributes=attributes, start_time=int(began * 1e9) + since_epoch
        )
        span.end(end_time=int(ended * 1e9) + since_epoch)
        return set_span_in_context(span)


_PARTS = ("queue", "prefill", "decode")


def tracing_of(config: TracingConfig) -> Tracing | None:
    """What samples as `config` says; None where no traces are wanted."""
    if not config.endpoint:
        return None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.ratio)),
        resource=Resource.create({"service.name": "rufus-serve", "service.version": __version__}),
    )
    return Tracing(provider)
