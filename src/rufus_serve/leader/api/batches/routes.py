"""`/v1/files` and `/v1/batches` over HTTP, as OpenAI's clients call them."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from rufus_serve.batch.lines import refusal_of
from rufus_serve.config.keys import ANONYMOUS, ApiKey
from rufus_serve.config.schema import BatchConfig
from rufus_serve.leader.api.batches.desk import BatchDesk
from rufus_serve.leader.api.batches.objects import Batch, Page, as_list
from rufus_serve.leader.api.batches.upload import Uploads
from rufus_serve.leader.api.bodies import parse_json, read_body
from rufus_serve.leader.api.call import CURRENT
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send

_MAX_BODY_BYTES = 100_000
_BODY_S = 30.0
_MAX_PAIRS = 16
_MAX_KEY, _MAX_VALUE = 64, 512
_MOST_LISTED = {"files": 10_000, "batches": 100}


class _Call(NamedTuple):
    """One request: who asks, and of which file or batch, if of one."""

    request: Request
    key: ApiKey
    id: str = ""


_Handler = Callable[[_Call], Awaitable[Response]]


class BatchRoutes:
    """Answers the routes of files and batches itself, and passes everything else on."""

    def __init__(self, app: App, desk: BatchDesk | None, config: BatchConfig) -> None:
        """`desk`: None where `batch.folder` is empty."""
        self._app, self._desk = app, desk
        self._handlers: dict[tuple[str, str], _Handler] = {}
        if desk is not None:
            self._handlers = _table(_FileHandlers(desk, config), _BatchHandlers(desk))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request of a listed route."""
        kind, *rest = scope["path"].removeprefix("/v1/").split("/")
        if kind not in _MOST_LISTED:
            await self._app(scope, receive, send)
            return
        try:
            response = await self._answer(Request(scope, receive), kind, rest)
        except HttpError as error:
            await error.send(send)
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request, kind: str, rest: list[str]) -> Response:
        if self._desk is None:
            raise HttpError(404, f"/v1/{kind} is off; the setting batch.folder turns it on")
        method = "GET" if request.method == "HEAD" else request.method
        route = "/".join([kind, *("*" for _ in rest[:1]), *rest[1:]])
        caller = CURRENT.get()
        key = caller.key if caller else ANONYMOUS
        return await self._handlers[method, route](_Call(request, key, *rest[:1]))


def _table(files: "_FileHandlers", batches: "_BatchHandlers") -> dict[tuple[str, str], _Handler]:
    return {
        ("POST", "files"): files.upload,
        ("GET", "files"): files.listed,
        ("GET", "files/*"): files.one,
        ("DELETE", "files/*"): files.delete,
        ("GET", "files/*/content"): files.content,
        ("POST", "batches"): batches.create,
        ("GET", "batches"): batches.listed,
        ("GET", "batches/*"): batches.one,
        ("POST", "batches/*/cancel"): batches.cancel,
    }


class _FileHandlers:
    """What is asked of files."""

    def __init__(self, desk: BatchDesk, config: BatchConfig) -> None:
        self._desk, self._uploads = desk, Uploads(desk, config)

    async def upload(self, call: _Call) -> Response:
        return _json(await self._uploads.take(call.request, call.key))

    async def listed(self, call: _Call) -> Response:
        page, purpose = _page(call.request, "files"), call.request.query_params.get("purpose", "")
        found, more = await self._desk.ask(self._desk.store.files, call.key.id, page, purpose)
        return _json(as_list(found, has_more=more))

    async def one(self, call: _Call) -> Response:
        return _json(await self._find(call.key, call.id))

    async def content(self, call: _Call) -> Response:
        file = await self._find(call.key, call.id)
        path = self._desk.store.path(file.id)
        return FileResponse(path, media_type="application/jsonl", filename=file.filename)

    async def delete(self, call: _Call) -> Response:
        if self._desk.uses(call.key, call.id):
            raise HttpError(409, f"{call.id} is read by a batch; cancel that first")
        if not await self._desk.ask(self._desk.store.delete_file, call.key.id, call.id):
            raise HttpError(404, f"there is no file {call.id}")
        return _json({"id": call.id, "object": "file", "deleted": True})

    async def _find(self, key: ApiKey, file_id: str) -> Any:
        file = await self._desk.ask(self._desk.store.file, key.id, file_id)
        if file is None:
            raise HttpError(404, f"there is no file {file_id}")
        return file


class _BatchHandlers:
    """What is asked of batches."""

    def __init__(self, desk: BatchDesk) -> None:
        self._desk = desk

    async def create(self, call: _Call) -> Response:
        raw = await read_body(
            call.request.scope, call.request.receive, max_bytes=_MAX_BODY_BYTES, deadline_s=_BODY_S
        )
        return _json(await self._desk.create(call.key, asked_batch(parse_json(raw))))

    async def listed(self, call: _Call) -> Response:
        page = _page(call.request, "batches")
        found, more = await self._desk.ask(self._desk.store.batches, call.key.id, page)
        return _json(as_list([self._desk.as_it_is(each) for each in found], has_more=more))

    async def one(self, call: _Call) -> Response:
        return _json(await self._desk.find(call.key, call.id))

    async def cancel(self, call: _Call) -> Response:
        return _json(await self._desk.cancel(call.key, call.id))


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


def asked_batch(body: Any) -> Batch:
    """The batch that a request's body asks for.

    Raises:
        HttpError: 400, naming the field at fault.
    """
    try:
        asked = msgspec.convert(body, _Asked)
    except msgspec.ValidationError as error:
        raise HttpError(400, str(error)) from error
    refused = refusal_of(asked.endpoint)
    if refused:
        raise HttpError(400, refused, "endpoint")
    if asked.completion_window != "24h":
        raise HttpError(400, "completion_window must be 24h", "completion_window")
    pairs = (asked.metadata or {}).items()
    if len(pairs) > _MAX_PAIRS or any(len(k) > _MAX_KEY or len(v) > _MAX_VALUE for k, v in pairs):
        raise HttpError(
            400, f"metadata may have {_MAX_PAIRS} keys of {_MAX_KEY} and values of {_MAX_VALUE} "
            "characters", "metadata",
        )  # fmt: skip
    return Batch.new(asked.endpoint, asked.input_file_id, asked.metadata)


def _page(request: Request, kind: str) -> Page:
    asked, most = request.query_params, _MOST_LISTED[kind]
    text, order = asked.get("limit", "20"), asked.get("order", "desc")
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise HttpError(400, f"limit must be 1 to {most}, got {text[:20]!r}", "limit")
    if order not in ("asc", "desc"):
        raise HttpError(400, f"order must be asc or desc, got {order[:20]!r}", "order")
    return Page(limit=int(text), after=asked.get("after", ""), newest_first=order == "desc")


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
