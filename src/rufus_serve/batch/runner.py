"""Asks the lines of a batch, so many at a time, until each has its answer."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from rufus_serve.batch.journal import Journal
from rufus_serve.batch.lines import BatchLine, Fault, Reply, answered, failed

_LEAST_PAUSE_S = 0.2
_MOST_PAUSE_S = 10.0
_OK = 200


class NotNow(Exception):
    """The endpoint takes no request at present; the same one may be asked again."""

    def __init__(self, reason: str, *, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s
        """What the endpoint asks to wait; 0: it does not say."""


Send = Callable[[BatchLine], Awaitable[Reply]]
"""Asks one line; raises NotNow if another try may be answered."""


@dataclass(frozen=True)
class Pace:
    """How hard to press."""

    concurrency: int
    patience_s: float = float("inf")
    """How long nothing at all may be answered before the run gives up."""


class BatchRun:
    """One run over a batch's lines; event loop only."""

    def __init__(
        self,
        journal: Journal,
        send: Send,
        pace: Pace,
        *,
        on_line: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal, self._send, self._pace = journal, send, pace
        self._on_line = on_line
        """Called after each line that was written."""
        self._stopping = False

    def stop(self) -> None:
        """Begin no further line; those under way are finished."""
        self._stopping = True

    async def go(self, lines: Iterable[BatchLine | Fault]) -> None:
        """Ask each of `lines` that the journal does not hold yet.

        Raises:
            NotNow: the endpoint answered nothing for `patience_s`.
            BatchError: the disk refuses.
        """
        self._answered_at = time.monotonic()
        waiting = self._left(lines)
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(self._pace.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _left(self, lines: Iterable[BatchLine | Fault]) -> Iterator[BatchLine]:
        for line in lines:
            if self._stopping:
                return
            if isinstance(line, Fault):
                if line.key not in self._journal.done:
                    self._journal.fail(line.key, failed(line))
                    self._on_line()
            elif line.custom_id not in self._journal.done:
                yield line

    async def _work(self, waiting: Iterator[BatchLine]) -> None:
        for line in waiting:
            reply = await self._ask(line)
            if reply is None:
                return
            keep = self._journal.answer if reply.status == _OK else self._journal.fail
            keep(line.custom_id, answered(line, reply))
            self._on_line()

    async def _ask(self, line: BatchLine) -> Reply | None:
        """Ask until it is answered; None if told to stop meanwhile."""
        pause_s = _LEAST_PAUSE_S
        while not self._stopping:
            reply, wait_s = await self._try(line)
            if reply is not None:
                return reply
            await asyncio.sleep(max(pause_s, wait_s))
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        return None

    async def _try(self, line: BatchLine) -> tuple[Reply | None, float]:
        """The reply, or None and what the endpoint asks to wait."""
        try:
            reply = await self._send(line)
        except NotNow as refusal:
            if time.monotonic() - self._answered_at > self._pace.patience_s:
                raise
            return None, refusal.after_s
        self._answered_at = time.monotonic()
        return reply, 0.0


@contextlib.contextmanager
def closing(journal: Journal) -> Iterator[Journal]:
    """Close it at the block's end."""
    try:
        yield journal
    finally:
        journal.close()
