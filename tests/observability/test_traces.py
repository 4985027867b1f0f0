"""Traces that a real server sends to a collector of ours."""

import gzip
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.models import prompt, tiny_checkpoint
from tests.e2e.server import Server, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, prefix: str, *, of: str) -> list[Span]:
        """The spans of one trace whose names begin so."""
        return [s for s in self.spans if s.trace_id.hex() == of and s.name.startswith(prefix)]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_checkpoint(tmp_path_factory.mktemp("traces") / "llama", "llama")
    flags = (
        "--nodes=2", "--cluster.kind=local", "--max-model-len=512", "--tracing.ratio=0",
        f"--tracing.endpoint={collector.endpoint}",
    )  # fmt: skip
    with serving(model, *flags) as found:
        yield found


def ask(server: Server, count: int, **headers: str) -> None:
    body = {"model": server.name, "prompt": prompt(20), "max_tokens": count, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


@pytest.mark.timeout(180)
def test_a_callers_trace_reaches_down_to_the_followers(
    server: Server, collector: Collector
) -> None:
    deadline = time.monotonic() + 120
    # Spans are sent in batches, every five seconds.
    while not (collector.named("follower 1", of=TRACE) and collector.named("POST", of=TRACE)):
        assert time.monotonic() < deadline, [span.name for span in collector.spans]
        ask(server, 200, traceparent=f"00-{TRACE}-{PARENT}-01")
        time.sleep(1.0)
    (whole, *_) = collector.named("POST /v1/completions", of=TRACE)
    assert whole.parent_span_id.hex() == PARENT
    for name in ("queue", "prefill", "decode"):
        (part, *_) = (
            each for each in collector.named(name, of=TRACE) if each.parent_span_id == whole.span_id
        )
        assert whole.start_time_unix_nano <= part.start_time_unix_nano
        assert part.start_time_unix_nano <= part.end_time_unix_nano <= whole.end_time_unix_nano
    steps = {span.span_id: span for span in collector.named("step", of=TRACE)}
    executed = collector.named("follower", of=TRACE)
    assert {span.name for span in executed} == {f"follower {rank}: execute" for rank in (0, 1)}
    told = [span for span in executed if span.parent_span_id in steps]
    assert told
    for span in told:
        step = steps[span.parent_span_id]
        assert step.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= step.end_time_unix_nano + 1000


def test_who_asks_without_a_trace_is_traced_by_the_ratio_alone(
    server: Server, collector: Collector
) -> None:
    ask(server, 5)
    assert {span.trace_id.hex() for span in collector.spans} <= {TRACE}
