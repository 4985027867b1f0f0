"""`/metrics`, answered from the moment the port is bound; vLLM's are there once it is loaded."""

from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app

from rufus_serve.leader.api.http_error import App, Receive, Scope, Send


class MetricsRoute:
    """Answers `/metrics` itself and passes everything else on."""

    def __init__(self, app: App, registry: CollectorRegistry = REGISTRY) -> None:
        self._app = app
        self._metrics = make_asgi_app(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        app = self._metrics if scope["path"] == "/metrics" else self._app
        await app(scope, receive, send)
