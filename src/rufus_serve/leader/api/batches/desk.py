"""`BatchDesk`: makes batches, runs them side by side, and takes them up again after a restart."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rufus_serve.batch.journal import Journal
from rufus_serve.batch.lines import Fault, read
from rufus_serve.batch.runner import BatchRun, Pace, closing
from rufus_serve.config.keys import ApiKey
from rufus_serve.config.schema import BatchConfig
from rufus_serve.errors import BatchError
from rufus_serve.leader.api.batches.asgi_sender import AsgiSender, KeyGone
from rufus_serve.leader.api.batches.finish import finish
from rufus_serve.leader.api.batches.objects import Batch, RequestCounts
from rufus_serve.leader.api.batches.store import Store
from rufus_serve.leader.api.http_error import App, HttpError

_log = logging.getLogger(__name__)
_FAULTS_SHOWN = 100
_BESIDE_BODY = 10_000
"""Bytes of a line that are not the request's body."""
_DISK_S = 10.0
"""Between tries to write what a disk refused."""
_Result = TypeVar("_Result")


class _Running(NamedTuple):
    key_id: str
    batch: Batch
    task: asyncio.Task[None]


class BatchDesk:
    """Owns the folder while the server runs; event loop only, its store on a thread beside."""

    def __init__(
        self,
        config: BatchConfig,
        find_app: Callable[[str], App | None],
        *,
        places: int,
        max_body_bytes: int,
    ) -> None:
        """`find_app` gives what answers the lines of a key's batch; None: the key is gone."""
        assert config.folder is not None
        self._config, self._folder, self._find_app = config, config.folder, find_app
        self._max_line_bytes = max_body_bytes + _BESIDE_BODY
        self._num_places = config.concurrency or places
        self._places = asyncio.Semaphore(self._num_places)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._store: Store | None = None
        self._running: dict[str, _Running] = {}
        self._runs: dict[str, tuple[BatchRun, AsgiSender, Journal]] = {}

    async def open(self) -> None:
        """Take up the folder and what is unfinished in it.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self._store = await self._beside(Store, self._folder)
        for key_id, batch in await self._beside(self._store.open_batches):
            self._begin(batch, key_id)

    async def close(self) -> None:
        """Leave all as it is; `open` goes on from there."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None:
            await self._beside(self._store.close)
        self._thread.shutdown()

    @property
    def store(self) -> Store:
        """Of the open folder; its methods are called through `ask`.

        Raises:
            HttpError: 503, it is not open yet.
        """
        if self._store is None:
            raise HttpError(503, "the model is still loading", retry_after_s=5)
        return self._store

    async def ask(self, call: Callable[..., _Result], *args: Any) -> _Result:
        """What a method of the store returns, on the store's thread.

        Raises:
            HttpError: 507, the disk refuses.
        """
        try:
            return await self._beside(call, *args)
        except (OSError, sqlite3.OperationalError) as error:
            _log.error("batch.folder %s: %s", self.store.folder, error)
            reason = getattr(error, "strerror", None) or error
            raise HttpError(507, f"the server's disk refuses: {reason}") from error

    async def create(self, key: ApiKey, batch: Batch) -> Batch:
        """Begin a batch.

        Raises:
            HttpError: 404, its file is none of the key's; 429, the key has too many open.
        """
        if await self.ask(self.store.file, key.id, batch.input_file_id) is None:
            raise HttpError(404, f"there is no file {batch.input_file_id[:100]}", "input_file_id")
        num_open = sum(running.key_id == key.id for running in self._running.values())
        if num_open >= self._config.max_open:
            raise HttpError(
                429, f"key {key.id} has {num_open} batches open, the most allowed (batch.max_open)",
                retry_after_s=60,
            )  # fmt: skip
        await self.ask(self.store.save, batch, key.id)
        self._begin(batch, key.id)
        return batch

    async def find(self, key: ApiKey, batch_id: str) -> Batch:
        """A batch of the key, as it is now.

        Raises:
            HttpError: 404.
        """
        running = self._running.get(batch_id)
        if running is not None and running.key_id == key.id:
            return self.as_it_is(running.batch)
        batch = await self.ask(self.store.batch, key.id, batch_id)
        if batch is None:
            raise HttpError(404, f"there is no batch {batch_id[:100]}")
        return batch

    def as_it_is(self, batch: Batch) -> Batch:
        """`batch` with what it has done by now, if it runs."""
        running = self._running.get(batch.id)
        if running is None:
            return batch
        if batch.id in self._runs:
            self._count(running.batch)
        return running.batch

    async def cancel(self, key: ApiKey, batch_id: str) -> Batch:
        """Have a batch end; what it answered so far is kept.

        Raises:
            HttpError: 404, there is none; 409, it has ended.
        """
        batch = await self.find(key, batch_id)
        if not batch.is_open:
            raise HttpError(409, f"batch {batch_id} is {batch.status}; it cannot be cancelled")
        if batch.status in ("validating", "in_progress"):
            batch.become("cancelling")
            await self.ask(self.store.save, batch, key.id)
            self._stop(batch)
        return batch

    def uses(self, key: ApiKey, file_id: str) -> bool:
        """Whether a running batch of `key` reads this file."""
        return any(
            each.key_id == key.id and each.batch.input_file_id == file_id
            for each in self._running.values()
        )

    # ---- a batch's life ----

    def _begin(self, batch: Batch, key_id: str) -> None:
        task = asyncio.create_task(self._live(batch, key_id))
        self._running[batch.id] = _Running(key_id, batch, task)

    async def _live(self, batch: Batch, key_id: str) -> None:
        """From where it stands to its end; cancelled, it stays where it is."""
        try:
            if batch.status == "validating":
                await self._validate(batch)
            if batch.status == "in_progress":
                await self._run(batch, key_id)
        except KeyGone:
            batch.fail(_error("key_revoked", f"key {key_id} is in force no more"))
        except (BatchError, OSError) as error:
            _log.error("batch %s failed: %s", batch.id, error)
            batch.fail(_error("storage_error", "the server's disk refuses the batch's files"))
        while not await self._finish(batch, key_id):
            await asyncio.sleep(_DISK_S)
        del self._running[batch.id]
        counts = batch.request_counts
        _log.info("batch %s of %s is %s: %d answered, %d failed, of %d", batch.id, key_id,
                  batch.status, counts.completed, counts.failed, counts.total)  # fmt: skip

    async def _finish(self, batch: Batch, key_id: str) -> bool:
        """Whether the disk took the batch's end."""
        try:
            await self._beside(finish, self.store, batch, key_id)
        except (BatchError, OSError, sqlite3.Error) as error:
            _log.error("batch %s cannot end; trying again: %s", batch.id, error)
            return False
        return True

    async def _validate(self, batch: Batch) -> None:
        path = self.store.path(batch.input_file_id)
        total, faults = await self._beside(_examine, path, batch.endpoint, self._max_line_bytes)
        batch.request_counts = RequestCounts(total)
        most = self._config.max_requests
        if faults:
            batch.fail(*faults)
        elif not 0 < total <= most:
            text = f"the file has {total} requests; 1 to {most} are allowed (batch.max_requests)"
            batch.fail(_error("invalid_file", text))
        elif batch.status == "validating":
            batch.become("in_progress")

    async def _run(self, batch: Batch, key_id: str) -> None:
        journal = await self._beside(Journal, *self.store.journal(batch))
        with closing(journal):
            sender = AsgiSender(partial(self._find_app, key_id), self._places)
            run = BatchRun(journal, sender, Pace(self._num_places))
            self._runs[batch.id] = run, sender, journal
            if batch.status != "in_progress":
                self._stop(batch)  # cancelled while the journal was read
            left_s = max(0.0, batch.expires_at - time.time())
            expiry = asyncio.get_running_loop().call_later(left_s, self._expire, batch)
            try:
                await run.go(read(self.store.path(batch.input_file_id), endpoint=batch.endpoint))
            finally:
                expiry.cancel()
                self._count(batch)
                del self._runs[batch.id]

    def _expire(self, batch: Batch) -> None:
        if batch.status == "in_progress":
            batch.become("expired")
            self._stop(batch)

    def _stop(self, batch: Batch) -> None:
        if batch.id in self._runs:
            run, sender, _ = self._runs[batch.id]
            run.stop()
            sender.hang_up()

    def _count(self, batch: Batch) -> None:
        journal = self._runs[batch.id][2]
        total = batch.request_counts.total
        batch.request_counts = RequestCounts(total, journal.completed, journal.failed)

    async def _beside(self, call: Callable[..., _Result], *args: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def _examine(path: Path, endpoint: str, max_line_bytes: int) -> tuple[int, list[dict[str, Any]]]:
    """How many requests a file has, and its first faults."""
    total, faults = 0, list[dict[str, Any]]()
    for line in read(path, endpoint=endpoint, max_line_bytes=max_line_bytes):
        total += 1
        if isinstance(line, Fault) and len(faults) < _FAULTS_SHOWN:
            faults.append(
                {
                    "code": line.code,
                    "line": line.line,
                    "message": line.message,
                    "param": line.param,
                }
            )
    return total, faults


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": None}
