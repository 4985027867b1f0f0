"""Who may call what: the allow-list of routes, and API keys with their scopes."""

from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send
from rufus_serve.leader.api.key_ring import KeyRing
from rufus_serve.leader.api.routes import Route, check_method, find_route, is_open

_CHALLENGE = [(b"www-authenticate", b"Bearer")]


class Access:
    """Lets listed routes through to who may call them."""

    def __init__(self, app: App, keys: KeyRing, *, docs: bool) -> None:
        self._app = app
        self._keys = keys
        self._docs = docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            self._check(scope)
        except HttpError as error:
            await error.send(send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        key = self._keys.find(scope)
        call = CURRENT.get()
        if key is None and is_open(scope["path"]):
            check_method(find_route(scope["path"], docs=self._docs), scope["method"])
            return
        if key is None:
            # Nothing is told of routes to who has no key.
            raise HttpError(
                401,
                "the request must bear a valid API key: Authorization: Bearer KEY",
                headers=_CHALLENGE,
            )
        if call is not None:
            call.key = key
        route = find_route(scope["path"], docs=self._docs)
        check_method(route, scope["method"])
        _check_scope(route, key)


def _check_scope(route: Route, key: ApiKey) -> None:
    if route.scope is not None and route.scope not in key.scopes:
        raise HttpError(
            403, f"key {key.id} has scopes {', '.join(key.scopes)}; this needs {route.scope}"
        )
