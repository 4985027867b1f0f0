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
from rufus_serve.cluster.base import FollowerExit, NodeInfo
from rufus_serve.config import ServeConfig
from rufus_serve.config.ports import step_port
from rufus_serve.errors import ClusterError, RufusError
from rufus_serve.protocol.messages import (
    Ack,
    AnyMessage,
    Drain,
    FollowerSuspected,
    GroupFailed,
    GroupLost,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    Order,
    RestartFollower,
    Serving,
    Status,
    StatusRequest,
    TraceSteps,
    Welcome,
)
from rufus_serve.protocol.specs import FollowerSpec
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group_file import GroupFile, KeptFollower, path_for
from rufus_serve.supervisor.group_plan import (
    begin_run,
    form_orders,
    group_settings,
    kept_group,
    make_cluster,
)
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_keeper import LeaderKeeper
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.status import status_of

_log = logging.getLogger(__name__)
_TICK_S = 0.1
_ADOPTION_BEATS = 5
_LEADER_STOP_S = 10.0


class Supervisor:
    """Owns the group and the leader; everything but cluster calls runs on one event loop."""

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
        self._state = GroupState(
            group_settings(config),
            now=time.monotonic(),
            epoch=self._kept.epoch if self._kept else 0,
            serial=self._kept.last_serial if self._kept else 0,
        )
        self._report = Report()
        self._desk = FollowerDesk(self._control, config, self._state, self._report)
        self._desk.expect(self._kept.followers if self._kept else ())
        self._cluster = make_cluster(config, self._plan)
        # Launches wait, side by side, as long as what starts followers is away; kills do not.
        self._cluster_threads = ThreadPoolExecutor(
            2 * config.num_followers + 2, thread_name_prefix="cluster"
        )
        self._leader = LeaderKeeper(
            config, self._plan, state=self._state, link=self._link, report=self._report
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._drained = asyncio.Event()
        self._failure: RufusError | None = None
        self._nodes: tuple[NodeInfo, ...] = ()
        self._draining = False
        self._keep_followers = False
        self._signals = 0
        self._acting = asyncio.Lock()

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
        self._note_group()
        for receive in (self._receive_control, self._receive_link, self._tick):
            self._spawn(receive())

        def on_exit(news: FollowerExit) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._follower_ended, news)

        self._spawn(self._await_cluster(self._in_cluster(self._cluster.start, on_exit)))

    async def _await_cluster(self, starting: "asyncio.Future[Any]") -> None:
        self._nodes = nodes = await starting
        if self._ended.is_set():
            return
        self._report.step(f"cluster: {', '.join(f'{n.host} ({n.address})' for n in nodes)}")
        for action in list(self._state.start(await self._adopted(), time.monotonic())):
            await self._do(action)
        self._spawn(self._leader.keep())

    async def _adopted(self) -> tuple[tuple[ev.Joined, int], ...]:
        """Followers of an earlier supervisor that found us, with their ranks."""
        if self._kept is None:
            return ()
        await asyncio.sleep(_ADOPTION_BEATS * self._config.timeouts.heartbeat_s)
        found = self._desk.waiting()
        for joined, kept in found:
            self._cluster.adopt(kept.follower_id, joined.pid, joined.address)
            _log.info("adopting follower %d, process %d", kept.node_rank, joined.pid)
        return tuple((joined, kept.node_rank) for joined, kept in found)

    def _note_group(self) -> None:
        """Leave word of the group for commands and for the next supervisor."""
        waits = self._config.recovery.on_leader_loss == "wait"
        ranked = self._state.by_rank().values() if waits else ()
        GroupFile(
            supervisor_pid=os.getpid(),
            supervisor_began=psutil.Process().create_time(),
            link_endpoint=self._link_server.endpoint,
            control_endpoint=self._control.endpoint,
            token=self._plan.token,
            run_dir=str(self._plan.run_dir),
            epoch=self._state.epoch,
            followers=tuple(
                KeptFollower(
                    follower_id=member.follower_id,
                    node_rank=member.node_rank,
                    pid=member.pid,
                    address=member.address,
                )
                for member in ranked
            ),
        ).save(path_for(self._config))

    # ---- what comes in ----

    async def _receive_control(self) -> None:
        while True:
            for event in await self._desk.take(*await self._control.receive()):
                await self._handle(event)

    async def _receive_link(self) -> None:
        while True:
            await self._take_link(*await self._link_server.receive())

    async def _take_link(self, peer: bytes, message: AnyMessage) -> None:
        match message:
            case LeaderHello():
                self._link.hello(peer, message)
                if message.role == "engine":
                    await self._handle(ev.EngineJoined(leader_id=message.leader_id))
            case LeaderProgress():
                hosts = {rank: member.host for rank, member in self._state.by_rank().items()}
                self._link.took_progress(message, time.monotonic(), hosts)
                await self._handle(ev.Stepped(steps_done=message.steps_done))
            case FollowerSuspected():
                _log.warning("the leader gave up epoch %d: %s", message.epoch, message.reason)
                await self._handle(ev.Suspected(epoch=message.epoch, reason=message.reason))
            case Serving():
                self._leader.took_serving(message.leader_id)
            case Ack():
                self._drained.set()
            case StatusRequest() | RestartFollower() | TraceSteps() | Drain():
                await self._link_server.send(peer, await self._obey(message))
            case _:
                _log.debug("ignored %s on the link", type(message).__name__)

    async def _obey(self, order: Order) -> AnyMessage:
        match order:
            case StatusRequest():
                return self._status()
            case RestartFollower():
                if order.node_rank not in self._state.by_rank():
                    return Ack(error=f"there is no follower {order.node_rank} to restart")
                await self._handle(ev.RestartAsked(node_rank=order.node_rank))
            case TraceSteps():
                await self._link.to_engine(order)
            case Drain():
                self._keep_followers = order.keep_followers
                self._begin_drain(order.grace_s)
        return Ack()

    def _status(self) -> Status:
        return status_of(
            self._state,
            self._link,
            draining=self._draining,
            serving=self._leader.serving,
            engine_silent_s=2 * self._config.timeouts.heartbeat_lost_s,
            cluster=self._cluster.health,
        )

    def _follower_ended(self, news: FollowerExit) -> None:
        if not self._ended.is_set() and self._state.phase is not ev.GroupPhase.STOPPED:
            self._spawn(self._handle(self._desk.ended(news)))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            found = await self._desk.find_connected(time.monotonic())
            for event in (*found, ev.Tick()):
                await self._handle(event)

    # ---- what is done about it ----

    async def _handle(self, event: ev.Event) -> None:
        async with self._acting:  # Orders must reach a follower in the order they were decided.
            for action in list(self._state.handle(event, time.monotonic())):
                await self._do(action)
        for member in self._state.members.values():
            self._report.member(member)

    async def _do(self, action: ev.Action) -> None:
        match action:
            case ev.StartFollower():
                self._spawn(self._launch(action))
            case ev.KillFollower():
                self._desk.forget(action.follower_id)
                self._in_cluster(self._cluster.kill, action.follower_id)
            case ev.Welcomed():
                on_host = self._followers_beside(action.follower_id)
                welcome = Welcome(node_rank=action.node_rank, num_followers_on_host=on_host)
                await self._desk.send(action.follower_id, welcome)
            case ev.Form():
                await self._form(action)
            case ev.AnnounceReady():
                await self._announce(action.epoch)
            case ev.AnnounceLost():
                _log.warning("epoch %d is over: %s", action.epoch, action.reason)
                await self._link.to_engine(GroupLost(epoch=action.epoch, reason=action.reason))
            case ev.FailGroup():
                self._fail(action.kind(action.reason))

    async def _launch(self, action: ev.StartFollower) -> None:
        spec = FollowerSpec(
            config=self._config.for_followers(),
            node_rank=action.node_rank,
            follower_id=action.follower_id,
            control_endpoint=self._control.endpoint,
            token=self._plan.token,
            address=self._plan.address,
            # Fixed where firewalls stand between hosts; followers of one host take free ones.
            step_port=step_port(self._config) if self._plan.spread else 0,
        )
        try:
            await self._in_cluster(self._cluster.launch, spec)
            await self._handle(ev.Launched(follower_id=action.follower_id))
        except ClusterError as error:
            await self._handle(ev.Lost(follower_id=action.follower_id, reason=str(error)))

    def _followers_beside(self, follower_id: str) -> int:
        """Followers on the same host, this one included: they share its cores."""
        address = self._state.members[follower_id].address
        return max(1, sum(node.slots for node in self._nodes if node.address == address))

    async def _form(self, action: ev.Form) -> None:
        self._report.step(f"weights loaded, forming epoch {action.epoch}")
        self._note_group()
        for follower_id, order in form_orders(self._config, self._plan, action):
            await self._desk.send(follower_id, order)

    async def _announce(self, epoch: int) -> None:
        members = self._state.by_rank().values()
        endpoints = tuple(m.endpoint for m in members if m.endpoint is not None)
        info = self._state.info
        assert info is not None
        loads = ", ".join(f"{m.node_rank}: {m.load_count}" for m in members)
        self._report.step(f"epoch {epoch} ready; weights loaded by follower (times) {loads}")
        await self._link.to_engine(GroupReady(epoch=epoch, endpoints=endpoints, info=info))
        self._desk.exits.clear()

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
        self._state.handle(ev.Stopping(), time.monotonic())
        self._cluster.interrupt()
        await self._leader.stop(deadline_s=_LEADER_STOP_S if self._signals < 2 else 0.5)
        if self._keep_followers:
            self._cluster.release()
        else:
            await self._desk.stop_all("the leader stops")
            await asyncio.sleep(0.3 if self._signals < 2 else 0.0)
        await self._in_cluster(self._cluster.stop)
        for task in self._tasks:
            task.cancel()
        self._control.close()
        self._link_server.close()
        self._cluster_threads.shutdown(wait=False)
        if not self._keep_followers:
            self._plan.remove(keep_logs=self._config.keep_logs)
            path_for(self._config).unlink(missing_ok=True)
        _log.info("stopped")

    def _in_cluster(self, call: Any, *args: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(self._cluster_threads, call, *args)

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
