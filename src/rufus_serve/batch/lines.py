"""OpenAI's batch format: a request a line in, an answer or an error a line out."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_ABSENT = ("/v1/embeddings", "/v1/moderations")
_MAX_ID = 512
MAX_LINE_BYTES = 64_000_000


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    number: int
    """Of its line, from 1."""
    custom_id: str
    url: str
    body: dict[str, Any]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A line that cannot be asked, in the words of OpenAI's batch errors."""

    line: int
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None

    @property
    def key(self) -> "str | int":
        """By which it is known among a batch's lines: its custom_id, or its number."""
        return self.custom_id or self.line


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint answered."""

    status: int
    request_id: str
    body: Any


class _Raw(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


def read(
    path: Path, *, endpoint: str = "", max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[BatchLine | Fault]:
    """The lines of a file, one after another; blank ones are passed over.

    `endpoint`: the only URL that lines may have; empty: any of `ENDPOINTS`. A line that is too
    long is never held as a whole.

    Raises:
        OSError: it cannot be read.
    """
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(_cut(file, max_line_bytes), start=1):
            if not raw.strip():
                continue
            if len(raw) > max_line_bytes:
                text = f"longer than {max_line_bytes / 1e6:g} MB"
                yield Fault(line=number, code="line_too_long", message=text)
                continue
            found = parse(raw, number, endpoint=endpoint)
            if isinstance(found, BatchLine):
                first = seen.setdefault(found.custom_id, number)
                if first != number:
                    # No custom_id: the line that has it keeps it.
                    text = f"custom_id {found.custom_id!r} is that of line {first} already"
                    found = Fault(
                        line=number, code="duplicate_custom_id", message=text, param="custom_id"
                    )
            yield found


def _cut(file: IO[bytes], most: int) -> Iterator[bytes]:
    """Lines, of which those beyond `most` bytes come cut to one more than that."""
    while raw := file.readline(most + 1):
        yield raw
        while len(raw) > most and not raw.endswith(b"\n") and (more := file.readline(most)):
            if more.endswith(b"\n"):
                break


def parse(raw: bytes, number: int, *, endpoint: str = "") -> BatchLine | Fault:
    """One line as a request, or why it is none."""
    try:
        line = msgspec.json.decode(raw, type=_Raw)
    except msgspec.ValidationError as error:
        return Fault(line=number, code="invalid_request", message=str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault(line=number, code="invalid_json_line", message=f"not JSON: {error}")
    wrong = _wrong(line, endpoint)
    if wrong is None:
        return BatchLine(number=number, custom_id=line.custom_id, url=line.url, body=line.body)
    param, message = wrong
    code = "invalid_url" if param == "url" else "invalid_request"
    return Fault(line=number, code=code, message=message, param=param)


def _wrong(line: _Raw, endpoint: str) -> tuple[str, str] | None:
    """The field at fault and why, or None."""
    if not 0 < len(line.custom_id) <= _MAX_ID:
        return "custom_id", f"custom_id must have 1 to {_MAX_ID} characters"
    if line.method != "POST":
        return "method", f"method must be POST, got {line.method[:20]!r}"
    refused = refusal_of(line.url)
    if refused:
        return "url", refused
    if endpoint and line.url != endpoint:
        return "url", f"url is {line.url}, but the batch is for {endpoint}"
    if line.body.get("stream"):
        return "body.stream", "a batch has no streams; leave stream out"
    return None


def refusal_of(url: str) -> str:
    """Why no batch can ask `url`; empty if one can."""
    if url in ENDPOINTS:
        return ""
    if url in _ABSENT:
        return f"{url} is not supported: this server offers no {url.rpartition('/')[2]}"
    return f"{url[:100]} cannot be asked in a batch; choose one of {', '.join(ENDPOINTS)}"


def answered(line: BatchLine, reply: Reply) -> bytes:
    """The line that says what was answered, whatever its status."""
    response = {
        "status_code": reply.status,
        "request_id": reply.request_id,
        "body": reply.body,
    }
    return _line(line.custom_id, response=response, error=None)


def failed(fault: Fault) -> bytes:
    """The line that says why a request was not asked."""
    error = {"code": fault.code, "message": fault.message, "line": fault.line}
    return _line(fault.custom_id, response=None, error=error)


def key_of(written: bytes) -> str | int:
    """`BatchLine.custom_id` or `Fault.key` of a line that `answered` or `failed` made.

    Raises:
        ValueError: it is no such line.
    """
    try:
        line = json.loads(written)
        return str(line["custom_id"]) if line["custom_id"] else int(line["error"]["line"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no line of a batch's answers: {written[:80]!r}") from error


def _line(custom_id: str | None, *, response: Any, error: Any) -> bytes:
    written = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(written, ensure_ascii=False).encode() + b"\n"
