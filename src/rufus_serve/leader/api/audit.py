"""Gives each request an id, and writes one line about it once it is answered."""

import json
import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from typing import IO

from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.call import CURRENT, Call
from rufus_serve.leader.api.http_error import App, AsgiMessage, HttpError, Receive, Scope, Send

_log = logging.getLogger(__name__)
_HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Recorder:
    """The outermost layer: opens a `Call`, and closes it with a line in the audit log.

    The line never holds what was asked or answered. A request that fails in an unforeseen way is
    answered with status 500 in OpenAI's form.
    """

    def __init__(
        self, app: App, log: IO[str] | None, on_done: Callable[[Call], None] = lambda _: None
    ) -> None:
        """`on_done` is called with each request once it is answered."""
        self._app = app
        self._audit = log
        self._on_done = on_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        call = Call(_request_id(scope), method=scope["method"], path=scope["path"])
        name = (_HEADER, call.request_id.encode())
        scope["headers"] = [*(each for each in scope["headers"] if each[0] != _HEADER), name]
        CURRENT.set(call)

        async def observed(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                others = [each for each in message.get("headers", ()) if each[0] != _HEADER]
                message = {**message, "headers": [*others, name]}
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:  # noqa: BLE001 - the process edge
            _log.exception("request %s failed", call.request_id)
            if not call.status:
                await HttpError(500, f"request {call.request_id} failed; the log says why").send(
                    observed
                )
        finally:
            self._write(call)
            self._on_done(call)

    def _write(self, call: Call) -> None:
        if self._audit is None:
            return
        entry = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request_id": call.request_id,
            "key_id": call.key.id,
            "method": call.method,
            "route": call.path[:200],
            "model": call.model,
            "status": call.status or 499,
            "prompt_tokens": call.prompt_tokens,
            "output_tokens": call.output_tokens,
            "ttft_s": None if call.first_token_s is None else round(call.first_token_s, 4),
            "duration_s": round(time.monotonic() - call.began, 4),
        }
        self._audit.write(json.dumps(entry) + "\n")
        self._audit.flush()


def open_audit_log(place: str) -> IO[str] | None:
    """The log that `http.audit_log` names.

    Raises:
        ConfigError: the file cannot be written.
    """
    if place in ("", "-"):
        return sys.stdout if place else None
    try:
        return open(place, "a", encoding="utf-8", opener=_private)
    except OSError as error:
        raise ConfigError(f"http.audit_log {place} cannot be written: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(_HEADER, b"")
    return given.decode() if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
