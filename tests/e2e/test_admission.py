"""API keys and admission limits of a running server."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import Server, serving


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\nsecond-key\n")
    keys.chmod(0o600)
    limits = ("--max-num-seqs=2", "--limits.max-waiting=2", "--limits.request-timeout-s=3",
              "--limits.max-body-mb=0.01")  # fmt: skip
    flags = ("--cluster.kind=local", f"--api-key-file={keys}", *limits)
    with serving(tiny_model, *flags) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client, client.with_options(api_key="second-key") as keyed:
        yield keyed


def complete(client: openai.OpenAI, server: Server, **fields: Any) -> Any:
    """A completion that runs until it is cut off, unless `fields` say otherwise."""
    body = {"model": server.name, "prompt": "word", "max_tokens": 4000} | fields
    return client.completions.create(**body, extra_body={"ignore_eos": True})


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/version", "/docs", "/nothing"])
def test_a_route_without_key_is_401(server: Server, path: str) -> None:
    status, body = server.get(path)
    assert status == 401
    assert "API key" in body


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_need_no_key(server: Server, path: str) -> None:
    assert server.get(path)[0] == 200


def test_a_wrong_key_is_refused_and_a_right_one_admitted(
    server: Server, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.AuthenticationError):
        complete(client.with_options(api_key="third-key"), server, max_tokens=1)
    assert complete(client, server, max_tokens=1).usage.completion_tokens == 1


def test_a_request_beyond_the_waiting_room_is_429_with_retry_after(
    server: Server, client: openai.OpenAI
) -> None:
    def attempt(_: int) -> tuple[int, str | None]:
        try:
            complete(client, server)
        except openai.APIStatusError as error:
            return error.status_code, error.response.headers.get("retry-after")
        return 200, None

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(attempt, range(6)))
    assert found.count((429, "1")) == 2


def test_a_request_that_takes_too_long_is_504_and_frees_its_place(
    server: Server, client: openai.OpenAI
) -> None:
    began = time.monotonic()
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client, server, n=2, prompt="word " * 50)
    assert caught.value.status_code == 504
    assert time.monotonic() - began < 6
    assert complete(client, server, max_tokens=1).usage.completion_tokens == 1


def test_a_stream_that_takes_too_long_ends_with_an_error(
    server: Server, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.APIError, match="longer than 3 s"):
        list(complete(client, server, n=2, stream=True))


def test_a_body_over_the_limit_is_413(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client, server, prompt="x" * 20_000)
    assert caught.value.status_code == 413
