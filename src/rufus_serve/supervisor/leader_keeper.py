"""`LeaderKeeper`: starts the leader process, and again when it dies."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence

from rufus_serve import errors
from rufus_serve.config import ServeConfig
from rufus_serve.errors import LeaderError, StartupTimeout
from rufus_serve.supervisor.group_events import GroupPhase
from rufus_serve.supervisor.group_plan import GroupRun
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_process import LeaderProcess
from rufus_serve.supervisor.report import Report

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_PORT_FREE_S = 10.0


class LeaderKeeper:
    """Keeps one leader process running; followers keep their weights meanwhile."""

    def __init__(
        self,
        config: ServeConfig,
        plan: GroupRun,
        *,
        states: Sequence[GroupState],
        on_death: Callable[[], None],
        report: Report,
    ) -> None:
        """`states`: of the groups that it is to serve, which may come and go."""
        self._config, self._states, self._report = config, states, report
        self._on_death = on_death
        self._process = LeaderProcess(config, plan)
        self._restarts = 0
        self._given_up = False
        self._serving = asyncio.Event()
        self.has_served = False
        """Whether a leader ever took requests."""

    @property
    def running(self) -> bool:
        """Whether there is a leader process."""
        return self._process.running

    @property
    def serving(self) -> bool:
        """Whether it takes requests, by its own word."""
        return self._serving.is_set()

    def took_serving(self, leader_id: str) -> None:
        """The API process of `leader_id` says that it takes requests."""
        if self.running and leader_id == self._process.leader_id:
            self._serving.set()
            self.has_served = True

    def give_up(self) -> None:
        """Start no further leader."""
        self._given_up = True

    async def stop(self, *, deadline_s: float) -> None:
        """End the leader; it is killed after `deadline_s`."""
        self._given_up = True
        await self._process.stop(deadline_s=deadline_s)

    async def keep(self) -> None:
        """Start leaders until told otherwise.

        Raises:
            LeaderError: it died before it ever served, or too often.
            StartupTimeout: it does not serve though followers are ready.
        """
        await self._await_free_port()
        while not self._given_up:
            await self._process.start(groups=len(self._states))
            watch = asyncio.ensure_future(self._watch_start())
            ended = asyncio.ensure_future(self._process.wait())
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                watch.result()
            code = await ended
            watch.cancel()
            self._after_death(code)
            await self._await_free_port()

    def _after_death(self, code: int) -> None:
        served = self.serving
        self._serving.clear()
        self._on_death()
        if self._given_up:
            return
        self._restarts += 1
        if not served or self._restarts > self._config.recovery.max_restarts:
            often = f" (death {self._restarts})" if self._restarts > 1 else ""
            said = self._process.last_word() or _end_of(code)
            raise errors.of(code, f"leader{often}: {said}", otherwise=LeaderError)
        _log.warning("the leader died with code %d; starting another", code)

    async def _await_free_port(self) -> None:
        """Give an earlier leader a moment to go; a foreign server is the leader's to report."""
        deadline = time.monotonic() + (_PORT_FREE_S if self._takes_over() else 0.0)
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._config.host, self._config.port))
                except OSError:
                    await asyncio.sleep(_POLL_S)
                else:
                    return

    def _takes_over(self) -> bool:
        """Whether this endpoint had a leader before: ours, or an earlier supervisor's."""
        members = (member for state in self._states for member in state.members.values())
        adopted = any(member.load_count for member in members)
        return bool(self._restarts) or adopted

    async def _watch_start(self) -> None:
        """Wait until it serves; the deadline runs while followers are ready."""
        ready_since = 0.0
        limit = self._config.timeouts.leader_start_s
        while not self.serving:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._serving.wait(), _POLL_S)
            if any(state.phase is GroupPhase.READY for state in self._states):
                ready_since = ready_since or time.monotonic()
            if ready_since and time.monotonic() - ready_since > limit:
                raise StartupTimeout(f"the leader did not serve within {limit:g} s")
        self._report.step(f"serving on {_url(self._config)}")


def _url(config: ServeConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{config.http.scheme}://{host}:{config.port}"


def _end_of(code: int) -> str:
    """How a process ended that left no word."""
    if code >= 0:
        return f"it ended with code {code} without a word"
    name = signal.Signals(-code).name
    hint = "; it may have run out of memory" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
