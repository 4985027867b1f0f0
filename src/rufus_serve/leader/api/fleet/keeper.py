"""`EngineKeeper`: keeps one engine running for a group, and starts another when it dies."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rufus_serve.config.schema import RecoveryConfig
from rufus_serve.errors import LeaderError, RufusError
from rufus_serve.leader.api.fleet.dispatcher import Dispatcher
from rufus_serve.leader.api.fleet.link import EngineLink, EngineStartFailed

_log = logging.getLogger(__name__)
LostCall = Callable[[EngineLink, str], None]


class EngineKeeper:
    """Of one group; event loop thread only.

    Followers keep their weights when an engine dies: the next one adopts them.
    """

    def __init__(
        self,
        group: int,
        open_link: Callable[[int, LostCall], Awaitable[EngineLink]],
        dispatcher: Dispatcher,
        limits: RecoveryConfig,
    ) -> None:
        """`open_link` forks an engine and returns once it is ready; raises as `start` does."""
        self.group = group
        self._open_link = open_link
        self._dispatcher = dispatcher
        self._limits = limits
        self._restarting: asyncio.Task[None] | None = None
        self._failure: RufusError | None = None
        self._num_deaths = 0
        """In a row, without a token delivered in between."""
        self._tokens_at_death = 0
        self.link: EngineLink | None = None

    def failure(self) -> RufusError | None:
        """Why there will be no engine any more; None while there is or may be one."""
        return self._failure

    async def start(self) -> EngineLink:
        """An engine, once it is ready.

        Raises:
            RufusError: why it did not become ready.
        """
        self.link = link = await self._open_link(self.group, self._on_lost)
        self._dispatcher.add_port(link)
        return link

    def follow(self, starting: Awaitable[object]) -> None:
        """Take over an engine's first start, which others need not wait for."""
        self._restarting = asyncio.get_running_loop().create_task(self._keep(starting))

    def replace(self, reason: str) -> None:
        """Kill the engine, unless it is being replaced already."""
        if self.link is not None:
            self.link.give_up(reason)

    def give_up(self, error: RufusError) -> None:
        """The group has failed: it needs no engine any more."""
        self._failure = self._failure or error
        if self._restarting is not None:
            self._restarting.cancel()
        self.replace(str(error))

    def begin_anew(self) -> None:
        """The group that had failed is being formed again: it needs an engine."""
        if self._failure is not None:
            self._failure, self._num_deaths = None, 0
            self.follow(self.start())

    async def stop(self, *, deadline_s: float) -> None:
        """End the engine, by force after `deadline_s`."""
        if self._restarting is not None:
            self._restarting.cancel()
        if self.link is not None:
            await self.link.stop(deadline_s=deadline_s)

    async def leave(self, *, deadline_s: float) -> None:
        """The group is no more: end the engine, as `stop` does, and send it nothing again."""
        await self.stop(deadline_s=deadline_s)
        if self.link is not None:
            self._dispatcher.lose_port(self.link)

    def _on_lost(self, link: EngineLink, reason: str) -> None:
        _log.warning(
            "the engine of group %d is lost: %s; %d requests are open",
            *(link.group, reason, self._dispatcher.num_open),
        )
        self._failure = self._failure or link.failure()
        if self._failure is None:
            self.follow(self._start_again())
        else:
            self._dispatcher.close(self.group, lost=False, for_good=True)
        self._dispatcher.lose_port(link)

    async def _keep(self, starting: Awaitable[object]) -> None:
        """Start engines until one is ready, or none would ever be."""
        while not await self._has_started(starting) and self._failure is None:
            starting = self._start_again()

    async def _has_started(self, starting: Awaitable[object]) -> bool:
        try:
            await starting
        except EngineStartFailed as error:
            _log.warning("%s", error)
        except RufusError as error:
            self._failure = error
            self._dispatcher.close(self.group, lost=False, for_good=True)
        else:
            return True
        return False

    async def _start_again(self) -> None:
        """Start another, after a pause if deaths follow upon each other.

        Raises:
            RufusError: why it did not become ready, or why none is started any more.
        """
        self._count_death()
        if self._num_deaths > max(1, self._limits.max_restarts):
            raise LeaderError(
                f"engines died {self._num_deaths} times in a row without bringing a token "
                "(recovery.max_restarts); the log above says why"
            )
        await asyncio.sleep(self._pause_s())
        await self.start()

    def _count_death(self) -> None:
        num_tokens = self._dispatcher.num_tokens[self.group]
        if num_tokens > self._tokens_at_death:
            self._num_deaths = 0
        self._num_deaths += 1
        self._tokens_at_death = num_tokens

    def _pause_s(self) -> float:
        if self._num_deaths <= 1:
            return 0.0
        pause_s = self._limits.backoff_s * 2.0 ** min(self._num_deaths - 2, 16)
        return min(pause_s, self._limits.max_backoff_s)
