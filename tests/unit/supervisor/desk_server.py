"""A supervisor's groups and link desk, without sockets and processes."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fake_peers import FakePeerServer
from group_history import runtime_info

from rufus_serve.cluster.base import ClusterHealth, NodeInfo
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ClusterError, RufusError
from rufus_serve.protocol.messages import (
    AnyMessage,
    Drain,
    GroupNews,
    LeaderHello,
    StepEndpoint,
)
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group import Group, Shared
from rufus_serve.supervisor.group_plan import GroupRun, group_settings
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.link_desk import LinkDesk, LinkEvents
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.scaling import Scaling
from rufus_serve.supervisor.status import status_of


class Cluster:
    """Notes what is launched and killed."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.killed: list[str] = []
        self.health = ClusterHealth()
        self.room = 64

    def make_room(self, followers: int) -> tuple[NodeInfo, ...]:
        if followers > self.room:
            raise ClusterError(f"{followers} followers need a node each; there are {self.room}")
        return (NodeInfo(host="h", address="127.0.0.1", slots=followers),)

    def launch(self, spec: Any) -> None:
        self.launched.append(spec.follower_id)

    def kill(self, follower_id: str) -> None:
        self.killed.append(follower_id)


class Server:
    """A supervisor's groups and desk, without sockets and processes."""

    def __init__(self, tmp_path: Any, *, groups: int, **settings: Any) -> None:
        self.peers, self.cluster = FakePeerServer(), Cluster()
        self.failed: list[tuple[int, RufusError]] = []
        self.drains: list[Drain] = []
        self.config = config = ServeConfig(model="m", groups=groups, **settings)
        self.obstacle = ""
        self.states = [self.new_state(number, None) for number in range(groups)]
        self.link = LeaderLink(self.peers)
        run = GroupRun(token="t", address="127.0.0.1", control_port=0, spread=False,
                       run_dir=tmp_path)  # fmt: skip
        shared = Shared(
            config=config,
            plan=run,
            control_endpoint="tcp://127.0.0.1:1",
            desk=FollowerDesk(self.peers, config, self.states, Report()),
            link=self.link,
            cluster=self.cluster,
            threads=ThreadPoolExecutor(1),
            report=Report(),
            spawn=lambda work: self.tasks.append(asyncio.ensure_future(work)),
            note=lambda: None,
            on_failed=lambda group, error: self.failed.append((group.number, error)),
            new_state=self.state_again,
            has_several=groups > 1,
        )
        self.tasks: list[Any] = []
        self.groups = [Group(number, state, shared) for number, state in enumerate(self.states)]
        events = LinkEvents(serving=lambda _: None, drain=self.drains.append,
                            drained=lambda: None, status=self.status)  # fmt: skip
        self.scaling = Scaling(self.groups, self.states, shared, new_state=self.new_state,
                               obstacle=lambda: self.obstacle)  # fmt: skip
        self.desk = LinkDesk(self.peers, self.link, self.groups, self.scaling, events)

    def new_state(self, number: int, after: GroupState | None) -> GroupState:
        return GroupState(
            group_settings(self.config, number),
            now=time.monotonic(),
            epoch=after.epoch if after else 0,
            serial=after.serial if after else 0,
        )

    def state_again(self, group: Group) -> GroupState:
        self.states[group.number] = state = self.new_state(group.number, group.state)
        return state

    def status(self) -> Any:
        return status_of(
            [group.status(engine_silent_s=10.0) for group in self.groups],
            [follower for group in self.groups for follower in group.followers()],
            draining=False, serving=True, cluster=self.cluster.health,
        )  # fmt: skip

    async def serve(self) -> None:
        """Every group becomes ready, with an engine named after it."""
        await self.desk.take(b"api", LeaderHello(leader_id="l", role="api"))
        for group in self.groups:
            await group.start(())
            await self.engine_comes(group.number)
            await self.bring_up(group)
        self.take()

    async def engine_comes(self, number: int) -> None:
        hello = LeaderHello(leader_id=f"e{number}", role="engine", group=number)
        await self.desk.take(f"e{number}".encode(), hello)

    async def bring_up(self, group: Group) -> None:
        (member,) = group.state.by_rank().values()
        who = member.follower_id
        await group.handle(ev.Joined(follower_id=who, host="h", address="127.0.0.1"))
        await group.handle(ev.Loaded(follower_id=who, info=runtime_info()))
        epoch = group.state.epoch
        await group.handle(ev.Grouping(follower_id=who, epoch=epoch))
        endpoint = StepEndpoint(node_rank=0, host="h", endpoint="tcp://127.0.0.1:2")
        await group.handle(ev.Ready(follower_id=who, epoch=epoch, endpoint=endpoint))

    async def ask(self, order: AnyMessage) -> AnyMessage:
        await self.desk.take(b"cli", order)
        return next(message for peer, message in reversed(self.peers.sent) if peer == b"cli")

    def take(self) -> list[tuple[bytes, AnyMessage]]:
        return self.peers.take()

    def words(self) -> list[tuple[int, str]]:
        """What the API process was told of groups since the last time."""
        told = [message for peer, message in self.take() if peer == b"api"]
        return [(each.group, each.state) for each in told if isinstance(each, GroupNews)]


def run(
    tmp_path: Any, scenario: Callable[[Server], Any], *, groups: int = 2, **settings: Any
) -> None:
    async def whole() -> None:
        server = Server(tmp_path, groups=groups, **settings)
        await server.serve()
        await scenario(server)

    asyncio.run(whole())
