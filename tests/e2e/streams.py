"""Streamed requests of every kind, and what came of them, to be compared between runs."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

_SILENCE_S = 180.0

_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "people": {"type": "integer"},
        "sights": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 4},
    },
    "required": ["city", "people", "sights"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    """One streamed request."""

    path: str
    body: dict[str, Any]


def chat(text: str, **fields: Any) -> Ask:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0} | fields
    return Ask("/v1/chat/completions", body)


def completion(prompt: str | list[int], **fields: Any) -> Ask:
    return Ask("/v1/completions", {"prompt": prompt, "temperature": 0} | fields)


def every_kind(length: int, *, temperature: float = 1.0) -> list[Ask]:
    """One request for each feature whose state must outlive a lost group."""
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA}}
    sampled = {"temperature": temperature, "max_tokens": length}
    return [
        chat("Tell me about the sea.", max_tokens=length),
        completion("Once upon a time", seed=7, **sampled),
        chat("Describe Paris as JSON.", response_format=schema, max_tokens=2 * length),
        completion("The moon is", logprobs=3, max_tokens=length, ignore_eos=True),
        completion("My favourite colour", n=2, seed=11, presence_penalty=0.5, **sampled),
        completion("1, 2, 3, 4, 5,", stop=[" 19,", "zebra"], max_tokens=4 * length),
        completion("All that glitters", echo=True, logprobs=2, max_tokens=length),
    ]


@dataclass
class Answer:
    """All that a stream brought, put together again."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    error: str = ""
    chunk_times: list[float] = field(default_factory=list)

    def take(self, chunk: dict[str, Any]) -> None:
        self.chunk_times.append(time.monotonic())
        if "error" in chunk:
            self.error = str(chunk["error"]["message"])
        for choice in chunk.get("choices", ()):
            index = choice["index"]
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            self.texts[index] = self.texts.get(index, "") + (text or "")
            if choice.get("finish_reason"):
                assert index not in self.finish_reasons
                self.finish_reasons[index] = choice["finish_reason"]
            found = (choice.get("logprobs") or {}).get("token_logprobs") or ()
            self.logprobs.setdefault(index, []).extend(found)
        if chunk.get("usage"):
            self.usage = (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"])

    @property
    def longest_pause_s(self) -> float:
        times = self.chunk_times
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def assert_same(self, other: "Answer") -> None:
        """Equal to the token; numbers may differ by what another batch shape makes of them."""
        assert not self.error, self.error
        assert self.texts == other.texts
        assert self.finish_reasons == other.finish_reasons
        assert self.usage == other.usage
        for index, expected in other.logprobs.items():
            assert self.logprobs[index] == pytest.approx(expected, abs=2e-3)


def chunks(port: int, model: str, ask: Ask) -> Iterator[dict[str, Any]]:
    """The decoded events of one streamed request; closing the iterator hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SILENCE_S)
    options = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", ask.path, json.dumps(ask.body | options), headers)
        response = connection.getresponse()
        if response.status != 200:
            yield {"error": {"message": f"{response.status}: {response.read().decode()[:300]}"}}
            return
        for line in response:
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                return
            if data:
                event = json.loads(data)
                yield event
                if "error" in event:
                    return
        yield {"error": {"message": "the stream ended without [DONE]"}}
    except (OSError, http.client.HTTPException) as error:
        yield {"error": {"message": f"connection lost: {error!r}"}}
    finally:
        connection.close()


class Streams:
    """Requests that run side by side, each on a thread of its own."""

    def __init__(self, port: int, model: str, asks: Sequence[Ask]) -> None:
        self._port, self._model = port, model
        self._answers = [Answer() for _ in asks]
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(len(asks))
        self._runs: list[Future[None]] = [
            self._pool.submit(self._run, ask, answer)
            for ask, answer in zip(asks, self._answers, strict=True)
        ]

    @property
    def num_chunks(self) -> int:
        return sum(len(answer.chunk_times) for answer in self._answers)

    def wait_for_chunks(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Until `count` events have come, over all streams."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_chunks >= count, timeout_s)

    def wait_until_each_began(self, *, timeout_s: float = 60.0) -> None:
        with self._changed:
            began = self._changed.wait_for(
                lambda: all(len(answer.chunk_times) > 1 for answer in self._answers), timeout_s
            )
        assert began, [len(answer.chunk_times) for answer in self._answers]

    def finish(self) -> list[Answer]:
        """Every answer, once all streams have ended."""
        for run in self._runs:
            run.result(timeout=_SILENCE_S)
        self._pool.shutdown()
        return self._answers

    def _run(self, ask: Ask, answer: Answer) -> None:
        for chunk in chunks(self._port, self._model, ask):
            with self._changed:
                answer.take(chunk)
                self._changed.notify_all()
