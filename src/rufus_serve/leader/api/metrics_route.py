"""`/metrics`, answered from the moment the port is bound; vLLM's are there once it is loaded."""

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from rufus_serve.leader.api.http_error import App, Receive, Scope, Send

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
"""Whatever is asked for: in OpenMetrics 1.0 prometheus-client 0.26 writes `vllm_` for `vllm:`, and
every Prometheus asks for that first."""


class MetricsRoute:
    """Answers `/metrics` itself and passes everything else on."""

    def __init__(self, app: App, registry: CollectorRegistry = REGISTRY) -> None:
        self._app = app
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["path"] != "/metrics":
            await self._app(scope, receive, send)
            return
        body = generate_latest(self._registry)
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", _CONTENT_TYPE), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
