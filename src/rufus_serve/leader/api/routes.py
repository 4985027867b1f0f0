"""What this server answers: every route, its methods, and the scope a caller needs for it.

Whatever is not listed is refused before vLLM sees it, though vLLM may have mounted it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rufus_serve.config.keys import Scope
from rufus_serve.leader.api.http_error import HttpError


class Route(NamedTuple):
    """One path that is served."""

    methods: tuple[str, ...]
    scope: Scope | None
    """None: open to everyone."""
    takes_place: bool = False
    """Its requests take places in the batch."""


_READ = ("GET", "HEAD")
_PROBE = Route(_READ, None)
_INFERENCE = Route(("POST",), "infer", takes_place=True)
_LIGHT = Route(("POST",), "infer")
_LISTED = Route((*_READ, "POST"), "infer")

ROUTES = {
    "/health": _PROBE,
    "/ready": _PROBE,
    "/ping": _PROBE,
    "/v1/models": Route(_READ, "infer"),
    "/v1/chat/completions": _INFERENCE,
    "/v1/chat/completions/batch": _INFERENCE,
    "/v1/completions": _INFERENCE,
    "/v1/messages": _INFERENCE,
    "/v1/responses": _INFERENCE,
    "/invocations": _INFERENCE,
    "/generative_scoring": _INFERENCE,
    "/tokenize": _LIGHT,
    "/detokenize": _LIGHT,
    "/v1/messages/count_tokens": _LIGHT,
    "/v1/files": _LISTED,
    "/v1/files/{id}": Route((*_READ, "DELETE"), "infer"),
    "/v1/files/{id}/content": Route(_READ, "infer"),
    "/v1/batches": _LISTED,
    "/v1/batches/{id}": Route(_READ, "infer"),
    "/v1/batches/{id}/cancel": _LIGHT,
    "/overview": Route(_READ, "metrics"),
    "/overview/events": Route(("GET",), "metrics"),
    "/ui": _PROBE,
    "/ui/{file}": _PROBE,
    "/metrics": Route(_READ, "metrics"),
    "/version": Route(_READ, "admin"),
    "/load": Route(_READ, "admin"),
}
DOCS_ROUTES = dict.fromkeys(
    ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"), Route(_READ, "infer")
)
"""Served with `http.docs` only."""

_ID = re.compile(r"^(/v1/(?:files|batches)/)[A-Za-z0-9_-]{1,100}")
"""What stands for `{id}` in a path."""
_FILE = re.compile(r"^/ui/[a-z/.-]{0,50}$")
"""What stands for `{file}` in a path."""

ABSENT = {
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
    "/pooling": "pooling",
    "/classify": "classification",
    "/score": "scoring",
    "/v1/score": "scoring",
    "/rerank": "reranking",
    "/v1/rerank": "reranking",
    "/v2/rerank": "reranking",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
    "/v1/audio/speech": "audio",
    "/v1/images/generations": "images",
    "/v1/moderations": "moderation",
    "/v1/realtime": "realtime audio",
    "/v1/load_lora_adapter": "LoRA",
    "/v1/unload_lora_adapter": "LoRA",
    "/scale_elastic_ep": "elastic scaling",
    "/is_scaling_elastic_ep": "elastic scaling",
}
"""Routes that clients know from elsewhere, and the feature they belong to."""


def find_route(path: str, *, docs: bool) -> Route:
    """The route that serves `path`.

    Raises:
        HttpError: 404, naming the feature that is not offered if `path` belongs to one.
    """
    route = ROUTES.get(_pattern(path))
    if route is None and docs:
        route = DOCS_ROUTES.get(path)
    if route is not None:
        return route
    feature = ABSENT.get(path.rstrip("/"))
    if feature:
        raise HttpError(404, f"{path} is not supported: this server offers no {feature}")
    if path.startswith("/v1/responses/"):
        raise HttpError(404, "this server stores no responses; keep the conversation in the client")
    if path in DOCS_ROUTES:
        raise HttpError(404, f"{path} is off; the setting http.docs turns it on")
    raise HttpError(404, f"{path[:200]} is no route of this server{_meant(path)}")


def _meant(path: str) -> str:
    """The route that was meant, where it is a slash or a `/v1` off."""
    plain = "/" + path.strip("/")
    for nearest in (plain, "/v1" + plain, plain.replace("/v1/v1/", "/v1/", 1)):
        if nearest in ROUTES:
            return f"; {nearest} is"
    return ""


def is_open(path: str) -> bool:
    """Whether `path` is served to those without a key."""
    route = ROUTES.get(_pattern(path))
    return route is not None and route.scope is None


def label_of(path: str) -> str:
    """`path` as metrics name it: without ids, and one name for all that is not served."""
    pattern = _pattern(path)
    return pattern if pattern in ROUTES else "other"


def _pattern(path: str) -> str:
    if path in ROUTES:
        return path
    return "/ui/{file}" if _FILE.match(path) else _ID.sub(r"\1{id}", path)


def listed_paths(documented: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is served of an OpenAPI document's `paths`."""
    return {
        path: {
            name: operation
            for name, operation in documented[path].items()
            if name.upper() in route.methods
        }
        for path, route in ROUTES.items()
        if path in documented
    }


def check_method(route: Route, method: str) -> None:
    """Raise HttpError 405 for a method that `route` does not take."""
    if method not in route.methods:
        allowed = ", ".join(route.methods)
        raise HttpError(
            405,
            f"{method} is not allowed here; use {allowed}",
            headers=[(b"allow", allowed.encode())],
        )
