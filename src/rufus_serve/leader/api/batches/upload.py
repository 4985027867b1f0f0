"""Takes a file of `/v1/files` in, within bounds of size, time and number."""

import asyncio
import shutil
import sqlite3
from pathlib import Path
from typing import IO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from rufus_serve.config.keys import ApiKey
from rufus_serve.config.schema import BatchConfig
from rufus_serve.leader.api.batches.desk import BatchDesk
from rufus_serve.leader.api.batches.objects import StoredFile, new_file
from rufus_serve.leader.api.bodies import discard
from rufus_serve.leader.api.http_error import AsgiMessage, HttpError, Receive

_AT_ONCE = 4
_UPLOAD_S = 600.0
_FIELDS_BYTES = 10_000
"""Room for the other fields of a form."""
_KNOWN = {"file", "purpose"}
_NAME = 255


class Uploads:
    """Uploads under way; event loop only."""

    def __init__(self, desk: BatchDesk, config: BatchConfig) -> None:
        self._desk = desk
        self._max_file_bytes = int(config.max_file_mb * 1e6)
        self._max_stored_bytes = int(config.max_stored_mb * 1e6)
        self._free = _AT_ONCE

    async def take(self, request: Request, key: ApiKey) -> StoredFile:
        """One upload.

        Raises:
            HttpError: it is too large, too slow, one too many, or not as OpenAI's clients send it.
        """
        store = self._desk.store
        if not self._free:
            raise HttpError(429, f"{_AT_ONCE} uploads are under way, the most", retry_after_s=1)
        if await self._desk.ask(store.stored_bytes, key.id) >= self._max_stored_bytes:
            raise HttpError(
                413, f"key {key.id} stores {self._max_stored_bytes / 1e6:g} MB, the most allowed "
                "(batch.max_stored_mb); delete files",
            )  # fmt: skip
        self._free -= 1
        try:
            return await asyncio.wait_for(self._take(request, key), _UPLOAD_S)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise HttpError(408, f"the upload took longer than {_UPLOAD_S:g} s") from error
        finally:
            self._free += 1

    async def _take(self, request: Request, key: ApiKey) -> StoredFile:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HttpError(400, "a file is uploaded as multipart/form-data")
        bounded = _bounded(request.receive, self._max_file_bytes + _FIELDS_BYTES)
        try:
            form = await Request(request.scope, bounded).form(max_files=1, max_fields=8)
        except MultiPartException as error:
            raise HttpError(400, f"the form cannot be read: {error.message}") from error
        try:
            content = _checked(form, self._max_file_bytes)
            file = new_file((content.filename or "upload")[:_NAME], "batch", content.size or 0)
            await self._desk.ask(self._keep, content.file, file, key.id)
            return file
        finally:
            await form.close()

    def _keep(self, content: IO[bytes], file: StoredFile, key_id: str) -> None:
        store = self._desk.store
        partial = store.folder / "files" / f"{file.id}.part"
        try:
            _copy(content, partial)
            store.take(partial, file, key_id)
        except (OSError, sqlite3.Error):
            for path in (partial, store.path(file.id)):
                path.unlink(missing_ok=True)
            raise


def _copy(content: IO[bytes], path: Path) -> None:
    content.seek(0)
    with path.open("xb") as file:
        shutil.copyfileobj(content, file)


def _checked(form: FormData, max_bytes: int) -> UploadFile:
    unknown = sorted(form.keys() - _KNOWN)
    if unknown:
        raise HttpError(400, f"{unknown[0][:100]} is not supported", unknown[0][:100])
    if form.get("purpose") != "batch":
        raise HttpError(400, "purpose must be batch; nothing else uses files here", "purpose")
    content = form.get("file")
    if not isinstance(content, UploadFile):
        raise HttpError(400, "the form has no file", "file")
    if (content.size or 0) > max_bytes:
        raise _too_large(max_bytes)
    return content


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    """A receive that refuses to go on beyond `most_bytes`."""
    size = 0

    async def bounded() -> AsgiMessage:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most_bytes:
            await discard(receive)
            raise _too_large(most_bytes - _FIELDS_BYTES)
        return message

    return bounded


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"the file is larger than {max_bytes / 1e6:g} MB (batch.max_file_mb)")
