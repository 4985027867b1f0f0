"""Request bodies: read within bounds of size and time, and parsed strictly."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from rufus_serve.leader.api.http_error import HttpError, Receive, Scope

_DISCARD_BYTES = 1 << 26
_DISCARD_S = 10.0
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, deadline_s: float) -> bytes:
    """The whole body of a request that brings JSON.

    Raises:
        HttpError: 415 when it says that it brings something else; 413 when it is, or says it will
            be, larger than `max_bytes`; 408 when it takes longer than `deadline_s`.
    """
    _check_media(dict(scope["headers"]))
    try:
        return await asyncio.wait_for(_read(scope, receive, max_bytes), deadline_s)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise HttpError(
            408, f"the request body took longer than {deadline_s:g} s", headers=_CLOSE
        ) from error


_CLOSE = [(b"connection", b"close")]


def _check_media(headers: Mapping[bytes, bytes]) -> None:
    # What a page of another origin can send without a preflight is thereby no request either.
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        given = f"is {kind.decode('latin-1')!r}" if kind else "is missing"
        raise HttpError(415, f"Content-Type {given}; send JSON and name it: application/json")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise HttpError(
            415,
            f"Content-Encoding {encoding.decode('latin-1')!r} is not supported; send the body "
            "uncompressed",
            headers=[(b"accept-encoding", b"identity")],
        )


async def _read(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    too_large = HttpError(413, f"the request body is larger than {max_bytes / 1e6:g} MB")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > max_bytes:
        await discard(receive)
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the client hung up before the request was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > max_bytes:
            if more:
                await discard(receive)
            raise too_large
    return b"".join(parts)


async def discard(receive: Receive) -> None:
    """Read on for a while: a client that still sends would never see the answer."""
    size, ends = 0, time.monotonic() + _DISCARD_S
    while size < _DISCARD_BYTES and (left_s := ends - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left_s)
        except (asyncio.TimeoutError, TimeoutError):
            return
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def parse_json(raw: bytes) -> Any:
    """The body as JSON.

    Raises:
        HttpError: 400 when it is not JSON in UTF-8. NaN and Infinity are not, nor is half of a
            surrogate pair: no encoding of text has it, and tokenizers fail on it.
    """

    def refuse(name: str) -> None:
        raise HttpError(400, f"{name} is not a JSON number")

    if not raw:
        raise HttpError(400, "the request body is empty, not valid JSON; send an object")
    try:
        # A byte order mark, as editors on Windows leave it, is ignored.
        text = raw.decode("utf-8-sig")
        body = json.loads(text, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise HttpError(
            400, f"the request body is not valid JSON: not UTF-8 at byte {error.start}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the request body is not valid JSON: {error}") from error
    if _SURROGATE.search(text):
        _refuse_half_pairs(body)
    return body


def _refuse_half_pairs(body: object) -> None:
    """Whole pairs were joined by the JSON parser, so that any surrogate left is half of one."""
    try:
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise HttpError(400, "the request body is nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise HttpError(
            400, f"the request body holds half of a surrogate pair: \\u{ord(half):04x} alone"
        ) from error
