"""`Group`: one group's events, and what is done about them."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rufus_serve.cluster.base import Cluster, NodeInfo
from rufus_serve.config import ServeConfig
from rufus_serve.config.ports import step_port
from rufus_serve.errors import ClusterError, RufusError
from rufus_serve.protocol.messages import (
    EpochLost,
    FollowerStatus,
    GroupNews,
    GroupReady,
    GroupStatus,
    LeaderProgress,
    Welcome,
)
from rufus_serve.protocol.specs import FollowerSpec
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.engine_watch import EngineWatch
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group_plan import GroupRun, form_orders
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.status import followers_of, group_status

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Shared:
    """What all groups of a supervisor use."""

    config: ServeConfig
    plan: GroupRun
    control_endpoint: str
    desk: FollowerDesk
    link: LeaderLink
    cluster: Cluster
    threads: ThreadPoolExecutor
    """Where calls to the cluster block."""
    report: Report
    spawn: Callable[[Coroutine[Any, Any, None]], Any]
    note: Callable[[], None]
    """Leaves word of the groups on disk."""
    on_failed: Callable[["Group", RufusError], None]
    new_state: Callable[["Group"], GroupState]
    """In the place of a group's that failed."""
    has_several: bool
    """Whether there is, or was, more than one group for the API process to choose from."""
    nodes: tuple[NodeInfo, ...] = ()
    acting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Orders must reach a follower in the order they were decided, whichever group it goes to."""

    def in_cluster(self, call: Any, *args: Any) -> "asyncio.Future[Any]":
        """What `call` returns, which may block."""
        return asyncio.get_running_loop().run_in_executor(self.threads, call, *args)


class Group:
    """Event loop only; the state machine decides, this performs."""

    def __init__(self, number: int, state: GroupState, shared: Shared) -> None:
        self.number, self.state, self._shared = number, state, shared
        self.engine = EngineWatch()
        self._outside = ""
        """Kept out of rotation: `draining` or, once the API process has none of its requests,
        `drained`."""
        self._back_when_ready = False

    async def start(self, adopted: tuple[tuple[ev.Joined, int], ...]) -> None:
        """Begin with followers found waiting, each with its rank."""
        for action in list(self.state.start(adopted, time.monotonic())):
            await self._do(action)

    async def handle(self, event: ev.Event) -> None:
        """Take in `event`, and do what follows of it."""
        async with self._shared.acting:
            for action in list(self.state.handle(event, time.monotonic())):
                await self._do(action)
        for member in self.state.members.values():
            self._shared.report.member(member)

    async def took_progress(self, message: LeaderProgress) -> None:
        """The engine's heartbeat."""
        hosts = {rank: member.host for rank, member in self.state.by_rank().items()}
        self.engine.took_progress(message, time.monotonic(), hosts)
        await self.handle(ev.Stepped(steps_done=message.steps_done))

    # ---- rotation ----

    @property
    def takes_requests(self) -> bool:
        """Whether it is ready and in rotation."""
        return self.state.phase is ev.GroupPhase.READY and not self._outside

    async def leave_rotation(self) -> None:
        """Have its requests go to other groups, and no new ones come."""
        self._outside, self._back_when_ready = "draining", False
        await self.tell_api()

    async def return_to_rotation(self) -> None:
        """Take requests again."""
        self._outside = ""
        await self.tell_api()

    @property
    def is_out(self) -> bool:
        """Whether it has no request, and will be sent none."""
        has_none = self.state.phase in (ev.GroupPhase.STARTING, ev.GroupPhase.FAILED)
        return has_none or self._outside == "drained"

    def is_idle(self) -> None:
        """The API process has none of its requests any more."""
        self._outside = self._outside and "drained"

    async def restart(self, *ranks: int) -> None:
        """Replace followers, out of rotation; requests that no other group takes are kept."""
        self._outside, self._back_when_ready = "draining", True
        await self.tell_api()
        await self.handle(ev.RestartAsked(node_ranks=ranks))

    async def restart_all(self) -> None:
        """Replace all followers; if it failed, form it anew with a new budget of restarts."""
        if self.state.phase is not ev.GroupPhase.FAILED:
            await self.restart(*self.state.by_rank())
            return
        self.state = self._shared.new_state(self)
        self._outside, self._back_when_ready = "draining", True
        await self.tell_api()
        async with self._shared.acting:
            await self.start(())

    async def tell_api(self, reason: str = "") -> None:
        """Say whether requests may be sent here; with one group there is no choice."""
        if not self._shared.has_several:
            return
        if self.state.phase is ev.GroupPhase.FAILED:
            word = "failed"
        elif self._outside:
            word = "out"
        else:
            word = "open" if self.state.phase is ev.GroupPhase.READY else "lost"
        await self._shared.link.to_api(GroupNews(group=self.number, state=word, reason=reason))

    # ---- status ----

    def status(self, *, engine_silent_s: float) -> GroupStatus:
        """How it is now; an engine that stands still for `engine_silent_s` is unhealthy."""
        return group_status(
            self.state,
            self.engine,
            number=self.number,
            engine_silent_s=engine_silent_s,
            outside=self._outside,
        )

    def followers(self) -> tuple[FollowerStatus, ...]:
        """Its followers, by rank."""
        return tuple(followers_of(self.state, self.engine, number=self.number))

    # ---- actions ----

    async def _do(self, action: ev.Action) -> None:
        shared = self._shared
        match action:
            case ev.StartFollower():
                shared.spawn(self._launch(action))
            case ev.KillFollower():
                self._kill(action.follower_id)
            case ev.Welcomed():
                on_host = self._followers_beside(action.follower_id)
                welcome = Welcome(
                    node_rank=action.node_rank, num_followers_on_host=on_host, group=self.number
                )
                await shared.desk.send(action.follower_id, welcome)
            case ev.Form():
                await self._form(action)
            case ev.AnnounceReady():
                await self._announce(action.epoch)
            case ev.AnnounceLost():
                _log.warning("%s is over: %s", self._epoch(action.epoch), action.reason)
                await self.tell_api(action.reason)
                lost = EpochLost(epoch=action.epoch, reason=action.reason)
                await shared.link.to_engine(self.number, lost)
            case ev.FailGroup():
                shared.on_failed(self, action.kind(action.reason))

    def end(self) -> None:
        """Kill its followers: it failed or goes, and others go on."""
        for follower_id in self.state.members:
            self._kill(follower_id)

    def _kill(self, follower_id: str) -> None:
        self._shared.desk.forget(follower_id)
        self._shared.in_cluster(self._shared.cluster.kill, follower_id)

    async def _launch(self, action: ev.StartFollower) -> None:
        shared = self._shared
        spec = FollowerSpec(
            config=shared.config.for_followers(),
            node_rank=action.node_rank,
            follower_id=action.follower_id,
            control_endpoint=shared.control_endpoint,
            token=shared.plan.token,
            address=shared.plan.address,
            # Fixed where firewalls stand between hosts; followers of one host take free ones.
            step_port=step_port(shared.config) if shared.plan.spread else 0,
            group=self.number,
        )
        try:
            await shared.in_cluster(shared.cluster.launch, spec)
            await self.handle(ev.Launched(follower_id=action.follower_id))
        except ClusterError as error:
            await self.handle(ev.Lost(follower_id=action.follower_id, reason=str(error)))

    def _followers_beside(self, follower_id: str) -> int:
        """Followers on the same host, this one included: they share its cores."""
        address = self.state.members[follower_id].address
        return max(1, sum(node.slots for node in self._shared.nodes if node.address == address))

    async def _form(self, action: ev.Form) -> None:
        shared = self._shared
        shared.report.step(f"weights loaded, forming {self._epoch(action.epoch)}")
        shared.note()
        for follower_id, order in form_orders(shared.config, shared.plan, self.number, action):
            await shared.desk.send(follower_id, order)

    async def _announce(self, epoch: int) -> None:
        members = self.state.by_rank().values()
        endpoints = tuple(m.endpoint for m in members if m.endpoint is not None)
        info = self.state.info
        assert info is not None
        loads = ", ".join(f"{m.node_rank}: {m.load_count}" for m in members)
        ready = f"{self._epoch(epoch)} ready; weights loaded by follower (times) {loads}"
        self._shared.report.step(ready)
        if self._back_when_ready:
            self._outside, self._back_when_ready = "", False
        ready_group = GroupReady(epoch=epoch, endpoints=endpoints, info=info)
        await self._shared.link.to_engine(self.number, ready_group)
        await self.tell_api()
        self._shared.desk.forgive()

    def _epoch(self, epoch: int) -> str:
        """What people call it."""
        name = self.state.settings.name
        return f"epoch {epoch} of group {name}" if name else f"epoch {epoch}"
