"""`Supervisor`: turns messages and process ends into events, and actions into deeds."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerServer
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.config import ServeConfig
from rufus_serve.errors import RufusError
from rufus_serve.protocol.messages import Drain, GroupFailed, Status
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group import Group, Shared
from rufus_serve.supervisor.group_file import GroupFile, KeptFollower, path_for
from rufus_serve.supervisor.group_plan import (
    begin_run,
    group_settings,
    kept_group,
    make_cluster,
)
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_keeper import LeaderKeeper
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.link_desk import LinkDesk, LinkEvents
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.scaling import Scaling
from rufus_serve.supervisor.status import status_of

_log = logging.getLogger(__name__)
_TICK_S = 0.1
_ADOPTION_BEATS = 5
_LEADER_STOP_S = 10.0
_MOST_CALLS = 1024
"""To the cluster at a time."""


class Supervisor:
    """Owns the groups and the leader; everything but cluster calls runs on one event loop."""

    def __init__(self, config: ServeConfig, *, early_signals: Sequence[int] = ()) -> None:
        self._config = config
        self._early_signals = early_signals
        """Those that came before `run`."""
        self._kept = kept_group(config)
        self._plan = begin_run(config, self._kept)
        keys = GroupKeys.from_token(self._plan.token)
        control = f"tcp://{self._plan.address}:{self._plan.control_port}"
        beat_s, lost_s = config.timeouts.heartbeat_s, config.timeouts.heartbeat_lost_s
        # Half of the limit to be cut off in, and half to come back.
        self._control = PeerServer(control, keys=keys, ping_s=beat_s, silence_s=lost_s / 2)
        self._link_server = PeerServer(self._plan.link_endpoint, keys=keys)
        self._link = LeaderLink(self._link_server)
        self._states = [self._new_state(number) for number in range(config.groups)]
        self._report = Report()
        self._desk = FollowerDesk(self._control, config, self._states, self._report)
        kept = self._kept.followers if self._kept else ()
        self._desk.expect(tuple(each for each in kept if each.group < config.groups))
        self._cluster = make_cluster(config, self._plan)
        # Launches wait, side by side, as long as what starts followers is away; kills do not.
        self._cluster_threads = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="cluster")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._drained = asyncio.Event()
        self._leader = LeaderKeeper(
            config, self._plan, states=self._states, on_death=self._leader_died, report=self._report
        )
        self._shared = self._share()
        self._groups = [Group(n, state, self._shared) for n, state in enumerate(self._states)]
        self._link_desk = self._make_link_desk()
        self._ended = asyncio.Event()
        self._failure: RufusError | None = None
        self._draining = self._keep_followers = self._stopped = False
        self._signals = 0

    def _make_link_desk(self) -> LinkDesk:
        events = LinkEvents(
            serving=self._leader.took_serving,
            drain=self._on_drain,
            drained=self._drained.set,
            status=self._status,
        )
        scaling = Scaling(
            self._groups,
            self._states,
            self._shared,
            new_state=self._new_state,
            obstacle=self._cannot_scale,
        )
        return LinkDesk(self._link_server, self._link, self._groups, scaling, events)

    def _cannot_scale(self) -> str:
        if self._draining:
            return "the server is stopping"
        return "" if self._leader.serving else "the server is still starting; try once more"

    def _new_state(self, number: int, after: GroupState | None = None) -> GroupState:
        kept_epoch, kept_serial = (
            (self._kept.epoch, self._kept.last_serial) if self._kept else (0, 0)
        )
        return GroupState(
            group_settings(self._config, number),
            now=time.monotonic(),
            epoch=after.epoch if after else kept_epoch,
            serial=after.serial if after else kept_serial,
            borrow=self._lend_standby,
        )

    def _state_again(self, group: Group) -> GroupState:
        """A new state for a group that failed, whose processes and epochs are told apart."""
        self._states[group.number] = state = self._new_state(group.number, after=group.state)
        return state

    def _lend_standby(self, now: float) -> ev.Member | None:
        found = (state.lend_standby(now) for state in self._states)
        return next((member for member in found if member is not None), None)

    def _share(self) -> Shared:
        return Shared(
            config=self._config,
            plan=self._plan,
            control_endpoint=self._control.endpoint,
            desk=self._desk,
            link=self._link,
            cluster=self._cluster,
            threads=self._cluster_threads,
            report=self._report,
            spawn=self._spawn,
            note=self._note_groups,
            on_failed=self._group_failed,
            new_state=self._state_again,
            has_several=self._config.groups > 1,
        )

    async def run(self) -> int:
        """Serve until stopped or failed; the exit code.

        Raises:
            RufusError: the group failed for good; carries the exit code.
        """
        self._take_signals()
        try:
            if not self._early_signals:
                self._start()
                await self._ended.wait()
        finally:
            await self._stop()
        if self._failure is not None:
            raise self._failure
        return 0

    # ---- start ----

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._note_groups()
        for receive in (self._receive_control, self._receive_link, self._tick):
            self._spawn(receive())

        def on_exit(news: FollowerExit) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._follower_ended, news)

        if self._kept is None:
            # Its imports take as long as the cluster; an earlier one's end is waited for below.
            self._spawn(self._leader.keep())
        self._spawn(self._await_cluster(self._shared.in_cluster(self._cluster.start, on_exit)))

    async def _await_cluster(self, starting: "asyncio.Future[Any]") -> None:
        self._shared.nodes = nodes = await starting
        if self._ended.is_set():
            return
        self._report.step(f"cluster: {', '.join(f'{n.host} ({n.address})' for n in nodes)}")
        adopted = await self._adopted()
        for group in self._groups:
            await group.start(
                tuple(
                    (joined, kept.node_rank)
                    for joined, kept in adopted
                    if kept.group == group.number
                )
            )
        if self._kept is not None:
            self._spawn(self._leader.keep())

    async def _adopted(self) -> list[tuple[ev.Joined, KeptFollower]]:
        """Followers of an earlier supervisor that found us."""
        if self._kept is None:
            return []
        await asyncio.sleep(_ADOPTION_BEATS * self._config.timeouts.heartbeat_s)
        found = self._desk.waiting()
        for joined, kept in found:
            self._cluster.adopt(kept.follower_id, joined.pid, joined.address)
            _log.info("adopting follower %d, process %d", kept.node_rank, joined.pid)
        return found

    def _note_groups(self) -> None:
        """Leave word of the groups for commands and for the next supervisor."""
        waits = self._config.recovery.on_leader_loss == "wait"
        GroupFile(
            supervisor_pid=os.getpid(),
            supervisor_began=psutil.Process().create_time(),
            link_endpoint=self._link_server.endpoint,
            control_endpoint=self._control.endpoint,
            token=self._plan.token,
            run_dir=str(self._plan.run_dir),
            epoch=max(state.epoch for state in self._states),
            followers=tuple(
                KeptFollower(
                    follower_id=member.follower_id,
                    node_rank=member.node_rank,
                    pid=member.pid,
                    address=member.address,
                    group=number,
                )
                for number, state in enumerate(self._states)
                for member in state.by_rank().values()
                if waits
            ),
        ).save(path_for(self._config))

    # ---- what comes in ----

    async def _receive_control(self) -> None:
        while True:
            for event in await self._desk.take(*await self._control.receive()):
                await self._handle(event)

    async def _receive_link(self) -> None:
        while True:
            await self._link_desk.take(*await self._link_server.receive())

    def _status(self) -> Status:
        silent_s = 2 * self._config.timeouts.heartbeat_lost_s
        return status_of(
            [group.status(engine_silent_s=silent_s) for group in self._groups],
            [follower for group in self._groups for follower in group.followers()],
            draining=self._draining,
            serving=self._leader.serving,
            cluster=self._cluster.health,
        )

    def _leader_died(self) -> None:
        self._link.forget()
        for group in self._groups:
            group.engine.forget()

    def _follower_ended(self, news: FollowerExit) -> None:
        if not self._ended.is_set() and not self._stopped:
            self._spawn(self._handle(self._desk.ended(news)))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for event in await self._desk.find_connected(time.monotonic()):
                await self._handle(event)
            for group in self._groups:
                await group.handle(ev.Tick())

    async def _handle(self, event: ev.MemberEvent) -> None:
        """Have the follower's group take it in, if it still belongs to one."""
        for group in self._groups:
            if event.follower_id in group.state.members:
                await group.handle(event)
                return

    # ---- failure ----

    def _group_failed(self, group: Group, error: RufusError) -> None:
        """Go on without it if the others serve; else fail."""
        alive = any(each.state.phase is not ev.GroupPhase.FAILED for each in self._groups)
        if not alive or not self._leader.has_served:
            self._fail(error)
            return
        _log.error("group %d has failed and is out for good: %s", group.number, error)
        group.end()
        self._spawn(group.tell_api(str(error)))

    def _fail(self, error: RufusError) -> None:
        if self._failure is None:
            self._failure = error
            self._leader.give_up()
            self._spawn(self._end_failed(error))

    async def _end_failed(self, error: RufusError) -> None:
        """Let the API process answer every open request with an error, then end."""
        if self._desk.exits:
            _log.error("%s", self._desk.exits[0].last_words)
        await self._link.to_api(GroupFailed(reason=str(error), exit_code=error.exit_code))
        deadline = time.monotonic() + _LEADER_STOP_S
        while self._leader.running and self._leader.serving and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._ended.set()

    # ---- the end ----

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals > 1:
            _log.warning("stopping at once")
            self._ended.set()
            self._drained.set()
        else:
            self._begin_drain(self._config.timeouts.shutdown_grace_s)

    def _on_drain(self, order: Drain) -> None:
        self._keep_followers = order.keep_followers
        self._begin_drain(order.grace_s)

    def _begin_drain(self, grace_s: float) -> None:
        if not self._draining:
            self._draining = True
            self._leader.give_up()
            _log.info("stopping: no new requests; running ones may take up to %g s", grace_s)
            self._spawn(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        if self._leader.serving and await self._link.to_api(Drain(grace_s=grace_s)):
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace_s)
        self._ended.set()

    async def _stop(self) -> None:
        self._ended.set()
        self._leader.give_up()
        self._stopped = True
        for state in self._states:
            state.handle(ev.Stopping(), time.monotonic())
        self._cluster.interrupt()
        await self._leader.stop(deadline_s=_LEADER_STOP_S if self._signals < 2 else 0.5)
        if self._keep_followers:
            self._cluster.release()
        else:
            await self._desk.stop_all("the leader stops")
            await asyncio.sleep(0.3 if self._signals < 2 else 0.0)
        await self._shared.in_cluster(self._cluster.stop)
        for task in self._tasks:
            task.cancel()
        self._control.close()
        self._link_server.close()
        self._cluster_threads.shutdown(wait=False)
        if not self._keep_followers:
            self._plan.remove(keep_logs=self._config.keep_logs)
            path_for(self._config).unlink(missing_ok=True)
        _log.info("stopped")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None or self._ended.is_set():
            return
        error = task.exception()
        if isinstance(error, RufusError):
            self._fail(error)
        else:
            _log.error("a task of the supervisor failed", exc_info=error)
            self._fail(RufusError(f"the supervisor failed: {error}"))
