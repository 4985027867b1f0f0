"""One streamed request: what came, and when."""

import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec

from rufus_serve.bench.workload import Ask
from rufus_serve.client import bearer


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom to ask."""

    url: str
    model: str
    api_key: str = ""
    timeout_s: float = 600.0

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return bearer(self.api_key)


class Record(msgspec.Struct, kw_only=True):
    """One request as its client saw it; moments in seconds from the run's beginning."""

    start_s: float
    end_s: float = 0.0
    arrivals_s: list[float] = msgspec.field(default_factory=list)
    """When each piece came; its text may be empty, as that of half a character is."""
    input_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """To the first piece."""
        return self.arrivals_s[0] - self.start_s

    @property
    def tpot_s(self) -> float:
        """Per output token after the first."""
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / max(1, self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Between pieces."""
        moments = self.arrivals_s
        return [later - sooner for sooner, later in pairwise(moments)]

    @property
    def e2e_s(self) -> float:
        """To the last piece."""
        return self.end_s - self.start_s


async def ask(
    session: aiohttp.ClientSession, endpoint: Endpoint, what: Ask, *, began: float
) -> Record:
    """Send `what` and read its stream to the end; errors are recorded, not raised."""
    record = Record(start_s=time.perf_counter() - began)
    try:
        await _read(session, endpoint, what, record, began)
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        record.error = f"{type(error).__name__}: {error}".strip(": ")
    record.end_s = time.perf_counter() - began
    if not record.error and not record.arrivals_s:
        record.error = "the stream brought no token"
    return record


async def _read(
    session: aiohttp.ClientSession, endpoint: Endpoint, what: Ask, record: Record, began: float
) -> None:
    route = "chat/completions" if what.is_chat else "completions"
    async with session.post(
        f"{endpoint.url}/v1/{route}",
        json=_body(endpoint, what),
        headers=endpoint.headers,
        timeout=aiohttp.ClientTimeout(total=endpoint.timeout_s),
    ) as answer:
        if answer.status != 200:
            record.error = f"HTTP {answer.status}: {_message(await answer.text())}"
            return
        async for event in _events(answer):
            if "error" in event:
                record.error = _message(json.dumps(event))
                return
            _take(event, record, time.perf_counter() - began)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        data = line.removeprefix(b"data: ").strip()
        if line.startswith(b"data: ") and data != b"[DONE]":
            yield json.loads(data)


def _take(event: dict[str, Any], record: Record, now: float) -> None:
    for choice in event.get("choices", ()):
        if _is_piece(choice):
            record.arrivals_s.append(now)
            record.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    if usage := event.get("usage"):
        record.input_tokens = usage.get("prompt_tokens", 0)
        record.output_tokens = usage.get("completion_tokens", 0)


def _is_piece(choice: dict[str, Any]) -> bool:
    """Whether it brings a token, rather than only opening or closing a chat's answer."""
    delta = choice.get("delta")
    if delta is None:
        return "text" in choice
    return bool(delta.get("content")) if "role" in delta else bool(delta)


def _body(endpoint: Endpoint, what: Ask) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": endpoint.model,
        "max_tokens": what.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if what.is_chat:
        return asked | {"messages": list(what.messages)}
    return asked | {"prompt": what.prompt} | ({"ignore_eos": True} if what.exact else {})


def _message(text: str) -> str:
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text.strip().splitlines()[0][:200] if text.strip() else "no text"
