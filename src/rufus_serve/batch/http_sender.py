"""Asks the lines of a batch of an OpenAI endpoint over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from rufus_serve.batch.lines import BatchLine, Reply
from rufus_serve.batch.runner import NotNow, Send
from rufus_serve.client import bearer
from rufus_serve.errors import EndpointError

_CHECK_S = 10.0
_BUSY = (429, 502, 503)


@contextlib.asynccontextmanager
async def http_sender(url: str, api_key: str, *, timeout_s: float) -> AsyncIterator[Send]:
    """What asks lines of the endpoint at `url`, and leaves to the caller to ask again.

    Raises:
        EndpointError: nobody answers there, or not as an OpenAI endpoint does.
    """
    limit = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=bearer(api_key), connector=connector) as session:
        await _check(session, url)

        async def send(line: BatchLine) -> Reply:
            try:
                async with session.post(url + line.url, json=line.body, timeout=limit) as answer:
                    return await _reply(answer)
            except (asyncio.TimeoutError, TimeoutError):
                return _timed_out(timeout_s)
            except (aiohttp.ClientError, OSError) as error:
                raise NotNow(f"{url} does not answer: {error}") from error

        yield send


async def _reply(answer: aiohttp.ClientResponse) -> Reply:
    text = await answer.text()
    if answer.status in _BUSY:
        after = answer.headers.get("Retry-After", "")
        after_s = float(after) if after.isdigit() else 0.0
        raise NotNow(f"HTTP {answer.status}: {text[:200]}", after_s=after_s)
    request_id = answer.headers.get("x-request-id", "")
    return Reply(status=answer.status, request_id=request_id, body=_parsed(text))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"error": {"message": text[:1000]}}


def _timed_out(timeout_s: float) -> Reply:
    message = f"no answer within {timeout_s:g} s"
    return Reply(status=504, request_id="", body={"error": {"message": message}})


async def _check(session: aiohttp.ClientSession, url: str) -> None:
    limit = aiohttp.ClientTimeout(total=_CHECK_S)
    try:
        async with session.get(f"{url}/v1/models", timeout=limit) as answer:
            if answer.status != 200:
                raise EndpointError(
                    f"{url}/v1/models answers HTTP {answer.status}; is the API key right?"
                )
            await answer.json()
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise EndpointError(f"{url} does not answer: {error}; is the server running?") from error
    except ValueError as error:
        raise EndpointError(f"{url} is no OpenAI endpoint: {error}") from error
