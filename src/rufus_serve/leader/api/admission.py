"""Admission of requests: bodies are read and checked, places counted, time limits kept.

Plain ASGI, so that streams pass through unbuffered and a client's disconnect is seen at once.
"""

import asyncio
import contextlib
import json
import logging
from typing import Any

from rufus_serve.config import ServeConfig
from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.answer import Answer, Replay
from rufus_serve.leader.api.bodies import parse_json, read_body
from rufus_serve.leader.api.call import CURRENT, Call
from rufus_serve.leader.api.engine_args import served_name
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send
from rufus_serve.leader.api.places import Places
from rufus_serve.leader.api.rate_limits import RateLimits
from rufus_serve.leader.api.request_checks import cap_max_tokens, check_body, weight_of
from rufus_serve.leader.api.routes import ROUTES

_log = logging.getLogger(__name__)
_HANG_UP_S = 2.0


class Admission:
    """Counts open inference requests; admits, refuses or times them out.

    Event loop thread only. `drain` is called once, when the process is to end.
    """

    def __init__(self, app: App, config: ServeConfig) -> None:
        self._app = app
        self._http, self._limits = config.http, config.limits
        self._served = served_name(config)
        self._max_num_seqs = config.max_num_seqs
        self._places = Places(0)
        self.resize(num_groups=config.groups)
        self._rates = RateLimits()
        self._max_bytes = {
            True: int(config.limits.max_body_mb * 1_000_000),
            False: int(config.limits.max_tokenize_kb * 1000),
        }
        """Of a body, by whether its request takes places."""
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut_off = asyncio.Event()
        self._reason = ""
        self.max_model_len = 0
        """Of the model, once it is known; for `limits.cap_max_tokens`."""

    def resize(self, *, num_groups: int) -> None:
        """Admit as many sequences as so many groups run, and those that may wait."""
        capacity = num_groups * self._max_num_seqs + self._limits.max_waiting
        self._places.capacity = capacity

    @property
    def draining(self) -> bool:
        """Nothing more is admitted."""
        return self._draining

    @property
    def num_open(self) -> int:
        """Sequences of the inference requests that are open now."""
        return self._places.num_open

    def drain(self) -> None:
        """Admit nothing more."""
        self._draining = True

    def cut_off(self, reason: str) -> None:
        """End all open requests with `reason`; the first call counts."""
        if not self._cut_off.is_set():
            self._draining, self._reason = True, reason
            self._cut_off.set()

    async def idle(self) -> None:
        """Wait until no inference request is open."""
        await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a listed route."""
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            await self._checked(scope, receive, send)
        except HttpError as error:
            await error.send(send)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = CURRENT.get() or Call("")
        takes_place = ROUTES[scope["path"]].takes_place
        if takes_place:
            self._admit(call.key, 1)
        raw = await read_body(
            scope,
            receive,
            max_bytes=self._max_bytes[takes_place],
            deadline_s=self._http.body_timeout_s,
        )
        body = parse_json(raw)
        check_body(scope["path"], body, self._limits)
        _check_key(call, body, served=self._served)
        if self._limits.cap_max_tokens and cap_max_tokens(body, self.max_model_len):
            raw = json.dumps(body).encode()
        replay = Replay(raw, receive)
        if takes_place:
            call.sequences = weight_of(scope["path"], body)
            self._admit(call.key, call.sequences)
        answer = _with_headers(send, self._rates.admit(call.key))
        if not takes_place:
            await self._app(scope, replay, answer)
            return
        with self._place(call):
            await self._timed(scope, replay, answer)

    def _admit(self, key: ApiKey, weight: int) -> None:
        if self._draining:
            message = "the server is draining; try another one"
            raise HttpError(503, message, retry_after_s=5, reason="draining")
        self._places.check(key, weight)

    @contextlib.contextmanager
    def _place(self, call: Call) -> Any:
        call.rank = self._places.held(call.key.id)
        self._places.take(call.key.id, call.sequences)
        self._idle.clear()
        try:
            yield
        finally:
            self._places.take(call.key.id, -call.sequences)
            self._rates.spend(call.key, call.num_tokens)
            if not self.num_open:
                self._idle.set()

    async def _timed(self, scope: Scope, replay: Replay, send: Send) -> None:
        answer = Answer(send)
        limit_s = self._limits.request_timeout_s
        task = asyncio.ensure_future(self._app(scope, replay, answer))
        stop = asyncio.ensure_future(self._cut_off.wait())
        try:
            await asyncio.wait({task, stop}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                was_open = answer.shut()
                replay.hang_up()
                if was_open:
                    await _within(_HANG_UP_S, answer.fail(self._interruption(scope["path"])))
                await asyncio.wait({task}, timeout=_HANG_UP_S)
        finally:
            task.cancel()
            stop.cancel()
        if task.done() and not task.cancelled():
            task.result()

    def _interruption(self, path: str) -> HttpError:
        if self._cut_off.is_set():
            return HttpError(503, self._reason, retry_after_s=5)
        limit_s = self._limits.request_timeout_s
        _log.warning("%s took longer than %g s and was ended", path, limit_s)
        return HttpError(504, f"the request took longer than {limit_s:g} s and was ended")


async def _within(limit_s: float, sending: Any) -> None:
    """Send, but do not wait longer for a peer that does not read."""
    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
        await asyncio.wait_for(sending, limit_s)


def _check_key(call: Call, body: dict[str, Any], *, served: str) -> None:
    key, model, n = call.key, body.get("model") or served, body.get("n")
    call.model = model[:200] if isinstance(model, str) else ""
    if key.models and model not in key.models:
        raise HttpError(
            403, f"key {key.id} may ask for {', '.join(key.models)}; not for {model!r}", "model"
        )
    if key.max_n and isinstance(n, int) and n > key.max_n:
        raise HttpError(400, f"n must be at most {key.max_n} for key {key.id}, got {n}", "n")


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """A send that adds `headers` to the response."""
    if not headers:
        return send

    async def adding(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return adding
