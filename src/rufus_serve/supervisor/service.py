"""`Supervisor`: turns messages and process ends into events, and actions into deeds."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerServer
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ClusterError, FollowerError, LeaderError, RufusError, StartupTimeout
from rufus_serve.protocol import group_events as ev
from rufus_serve.protocol.group_state import GroupState
from rufus_serve.protocol.messages import (
    Ack,
    AnyMessage,
    Drain,
    FollowerSuspected,
    FormGroup,
    GroupFailed,
    GroupLost,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    RestartFollower,
    StatusRequest,
    Welcome,
)
from rufus_serve.protocol.specs import FollowerSpec
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.leader_process import LeaderProcess
from rufus_serve.supervisor.plan import group_settings, make_cluster, make_plan
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.status import status_of

_log = logging.getLogger(__name__)
_TICK_S = 0.1
_LEADER_STOP_S = 10.0
_SHM_EPOCHS = 16


class Supervisor:
    """Owns the group and the leader; everything but cluster calls runs on one event loop."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._plan = make_plan(config)
        keys = GroupKeys.from_token(self._plan.token)
        port = config.cluster.control_port
        self._control = PeerServer(f"tcp://{self._plan.address}:{port}", keys=keys)
        self._link_server = PeerServer(self._plan.link_endpoint, keys=keys)
        self._link = LeaderLink(self._link_server)
        self._state = GroupState(group_settings(config), now=time.monotonic())
        self._report = Report()
        self._desk = FollowerDesk(self._control, config, self._state, self._report)
        self._cluster = make_cluster(config, self._plan)
        self._cluster_thread = ThreadPoolExecutor(1, thread_name_prefix="cluster")
        self._leader = LeaderProcess(config, self._plan)
        self._leader_restarts = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._drained = asyncio.Event()
        self._failure: RufusError | None = None
        self._draining = False
        self._api_ready = False
        self._signals = 0

    async def run(self) -> int:
        """Serve until stopped or failed; the exit code.

        Raises:
            RufusError: the group failed for good; carries the exit code.
        """
        self._take_signals()
        try:
            self._start()
            await self._ended.wait()
        finally:
            await self._stop()
        if self._failure is not None:
            raise self._failure
        return 0

    # ---- start ----

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, self._on_signal)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for receive in (self._receive_control, self._receive_link, self._tick):
            self._spawn(receive())

        def on_exit(news: FollowerExit) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._follower_ended, news)

        starting = self._in_cluster_thread(self._cluster.start, on_exit)
        self._spawn(self._await_cluster(starting))

    async def _await_cluster(self, starting: "asyncio.Future[Any]") -> None:
        nodes = await starting
        # Ray puts a handler of its own on SIGTERM, which ends the process at once.
        self._take_signals()
        self._report.step(f"cluster: {', '.join(f'{n.host} ({n.address})' for n in nodes)}")
        await self._perform(self._state.start((), time.monotonic()))
        self._spawn(self._keep_leader())

    # ---- leader process ----

    async def _keep_leader(self) -> None:
        """Start the leader, and again when it dies, within the restart budget."""
        while not self._ended.is_set():
            began = time.monotonic()
            await self._leader.start()
            watch = self._spawn(self._watch_leader_start())
            code = await self._leader.wait()
            watch.cancel()
            self._api_ready = False
            self._link.forget()
            if self._ended.is_set() or self._draining:
                return
            self._leader_restarts += 1
            served = time.monotonic() - began > self._config.timeouts.leader_start_s / 4
            if 0 < code < 10 or not served:
                self._fail(
                    LeaderError(f"the leader ended with code {code}; its log says why"), code
                )
            elif self._leader_restarts > self._config.recovery.max_restarts:
                self._fail(LeaderError(f"the leader died {self._leader_restarts} times"), 9)
            else:
                _log.warning("the leader died with code %d; starting another", code)

    async def _watch_leader_start(self) -> None:
        """Poll until HTTP answers; give up past the deadline once followers are ready."""
        ready_since = 0.0
        while not self._api_ready:
            await asyncio.sleep(0.1)
            if self._state.phase is ev.GroupPhase.READY:
                ready_since = ready_since or time.monotonic()
            limit = self._config.timeouts.leader_start_s
            if ready_since and time.monotonic() - ready_since > limit:
                self._fail(StartupTimeout(f"the leader did not serve within {limit:g} s"), 8)
                return
            self._api_ready = await self._http_answers()
        self._report.step(f"serving on http://{self._config.host}:{self._config.port}")

    async def _http_answers(self) -> bool:
        """Whether vLLM's own routes answer (health answers sooner)."""
        progress = self._link.progress
        if progress is None or self._state.phase is not ev.GroupPhase.READY:
            return False
        host = _reachable(self._config.host)
        try:
            reader, writer = await asyncio.open_connection(host, self._config.port)
            writer.write(b"GET /version HTTP/1.0\r\nHost: localhost\r\n\r\n")
            line = await asyncio.wait_for(reader.readline(), 2.0)
            writer.close()
        except (OSError, asyncio.TimeoutError, TimeoutError):
            return False
        return b" 200 " in line or b" 401 " in line

    # ---- what comes in ----

    async def _receive_control(self) -> None:
        while True:
            peer, message = await self._control.receive()
            for event in await self._desk.take(peer, message):
                await self._handle(event)

    async def _receive_link(self) -> None:
        while True:
            peer, message = await self._link_server.receive()
            await self._take_link(peer, message)

    async def _take_link(self, peer: bytes, message: AnyMessage) -> None:
        match message:
            case LeaderHello():
                self._link.hello(peer, message)
                if message.role == "engine":
                    await self._handle(ev.EngineJoined(leader_id=message.leader_id))
            case LeaderProgress():
                self._link.took_progress(message, time.monotonic())
            case FollowerSuspected():
                _log.warning("the leader gave up epoch %d: %s", message.epoch, message.reason)
                await self._handle(ev.Suspected(epoch=message.epoch, reason=message.reason))
            case StatusRequest():
                status = status_of(
                    self._state, self._link, draining=self._draining, serving=self._api_ready
                )
                await self._link_server.send(peer, status)
            case RestartFollower():
                known = message.node_rank in self._state.by_rank()
                await self._handle(ev.RestartAsked(node_rank=message.node_rank))
                error = "" if known else f"there is no follower {message.node_rank} to restart"
                await self._link_server.send(peer, Ack(error=error))
            case Drain():
                await self._link_server.send(peer, Ack())
                self._begin_drain(message.grace_s)
            case Ack():
                self._drained.set()
            case _:
                _log.debug("ignored %s on the link", type(message).__name__)

    def _follower_ended(self, news: FollowerExit) -> None:
        if self._ended.is_set() or self._state.phase is ev.GroupPhase.STOPPED:
            return
        self._desk.note_exit(news)
        fatal = self._state.phase is ev.GroupPhase.STARTING and 0 < news.code != 11
        event = ev.Failed(
            follower_id=news.follower_id,
            reason=self._desk.first_error(news),
            fatal=fatal,
            exit_code=news.code if news.code > 0 else 7,
        )
        self._spawn(self._handle(event))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            await self._handle(ev.Tick())

    # ---- what is done about it ----

    async def _handle(self, event: ev.Event) -> None:
        await self._perform(self._state.handle(event, time.monotonic()))
        for member in self._state.members.values():
            self._report.member(member)

    async def _perform(self, actions: list[ev.Action]) -> None:
        for action in list(actions):
            await self._do(action)

    async def _do(self, action: ev.Action) -> None:
        match action:
            case ev.StartFollower():
                self._spawn(self._launch(action))
            case ev.KillFollower():
                self._desk.forget(action.follower_id)
                self._in_cluster_thread(self._cluster.kill, action.follower_id)
            case ev.Welcomed():
                on_host = self._config.nodes if self._plan.hosts == 1 else 1
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
                self._fail(FollowerError(action.reason), action.exit_code)

    async def _launch(self, action: ev.StartFollower) -> None:
        spec = FollowerSpec(
            config=self._config.model_dump(mode="json"),
            node_rank=action.node_rank,
            follower_id=action.follower_id,
            control_endpoint=self._control.endpoint,
            token=self._plan.token,
            address=self._plan.address,
            step_port=self._config.cluster.step_port if self._plan.hosts > 1 else 0,
        )
        try:
            await self._in_cluster_thread(self._cluster.launch, spec)
        except ClusterError as error:
            await self._handle(ev.Lost(follower_id=action.follower_id, reason=str(error)))

    async def _form(self, action: ev.Form) -> None:
        same_host = len(set(action.addresses)) == 1
        if same_host:
            rendezvous = f"{self._plan.run_dir.name}-{action.epoch}"
        else:
            port = self._config.cluster.rendezvous_port or 6402
            rendezvous = f"tcp://{action.addresses[0]}:{port + action.epoch % _SHM_EPOCHS}"
        self._report.step(f"weights loaded, forming epoch {action.epoch}")
        for follower_id, node_rank in action.members:
            order = FormGroup(
                epoch=action.epoch,
                node_rank=node_rank,
                num_nodes=len(action.members),
                rendezvous=rendezvous,
                same_host=same_host,
                num_blocks=action.num_blocks,
            )
            await self._desk.send(follower_id, order)

    async def _announce(self, epoch: int) -> None:
        members = self._state.by_rank().values()
        endpoints = tuple(m.endpoint for m in members if m.endpoint is not None)
        info = self._state.info
        assert info is not None
        self._report.step(f"epoch {epoch} ready")
        await self._link.to_engine(GroupReady(epoch=epoch, endpoints=endpoints, info=info))

    def _fail(self, error: RufusError, exit_code: int) -> None:
        if self._failure is None:
            error.exit_code = exit_code
            self._failure = error
            self._spawn(self._end_failed(error))

    async def _end_failed(self, error: RufusError) -> None:
        """Let the engine answer every open request with an error, then end."""
        await self._link.to_engine(GroupFailed(reason=str(error), exit_code=error.exit_code))
        deadline = time.monotonic() + _LEADER_STOP_S
        while self._leader.running and self._api_ready and time.monotonic() < deadline:
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
            _log.info("stopping: no new requests; running ones may take up to %g s", grace_s)
            self._spawn(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        if self._api_ready and await self._link.to_api(Drain(grace_s=grace_s)):
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace_s)
        self._ended.set()

    async def _stop(self) -> None:
        self._ended.set()
        self._state.handle(ev.Stopping(), time.monotonic())
        await self._leader.stop(deadline_s=_LEADER_STOP_S if self._signals < 2 else 0.5)
        await self._desk.stop_all("the leader stops")
        await asyncio.sleep(0.3 if self._signals < 2 else 0.0)
        await self._in_cluster_thread(self._cluster.stop)
        for task in self._tasks:
            task.cancel()
        self._control.close()
        self._link_server.close()
        self._cluster_thread.shutdown(wait=False)
        self._plan.remove()
        _log.info("stopped")

    # ---- plumbing ----

    def _in_cluster_thread(self, call: Any, *args: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(self._cluster_thread, call, *args)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, RufusError):
            self._fail(error, error.exit_code)
        else:
            _log.error("a task of the supervisor failed", exc_info=error)
            self._fail(RufusError(f"the supervisor failed: {error}"), 1)


def _reachable(host: str) -> str:
    """An address to reach a server by that listens on `host`, which may be a wildcard."""
    address = ipaddress.ip_address(host) if host[0].isdigit() or ":" in host else None
    if address is None or not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
