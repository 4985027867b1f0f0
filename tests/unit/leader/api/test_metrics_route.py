import asyncio

import pytest
from prometheus_client import CollectorRegistry, Gauge
from tests.unit.leader.api.asgi_call import Call

from rufus_serve.leader.api.http_error import Receive, Scope, Send, send_json
from rufus_serve.leader.api.metrics_route import MetricsRoute

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"


async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, 418, b"{}")


def ask(path: str, **headers: str) -> Call:
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "x", registry=registry).set(2)

    async def scenario() -> Call:
        call = Call(MetricsRoute(vllm, registry), path=path, method="GET", headers=headers)
        await call.task
        return call

    return asyncio.run(scenario())


@pytest.mark.parametrize("accept", [PROMETHEUS, "text/plain", "*/*"])
def test_names_keep_their_colons_whatever_is_asked_for(accept: str) -> None:
    found = ask("/metrics", accept=accept)
    assert "vllm:num_requests_running 2.0" in found.text.splitlines()
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_everything_else_is_passed_on() -> None:
    assert ask("/v1/models").status == 418
