"""Orders and engines' messages reach the group that they are about."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_peers import FakePeerServer
from group_history import runtime_info

from rufus_serve.cluster.base import ClusterHealth
from rufus_serve.config import ServeConfig
from rufus_serve.errors import FollowerError, RufusError
from rufus_serve.protocol.messages import (
    Ack,
    AnyMessage,
    Drain,
    DrainGroup,
    EpochLost,
    GroupFailed,
    GroupIdle,
    GroupNews,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    RestartFollower,
    RestartGroup,
    StatusRequest,
    StepEndpoint,
    TraceSteps,
)
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group import Group, Shared
from rufus_serve.supervisor.group_plan import GroupRun, group_settings
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.link_desk import LinkDesk, LinkEvents
from rufus_serve.supervisor.report import Report
from rufus_serve.supervisor.status import status_of


class Cluster:
    """Notes what is launched and killed."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.killed: list[str] = []
        self.health = ClusterHealth()

    def launch(self, spec: Any) -> None:
        self.launched.append(spec.follower_id)

    def kill(self, follower_id: str) -> None:
        self.killed.append(follower_id)


class Server:
    """A supervisor's groups and desk, without sockets and processes."""

    def __init__(self, tmp_path: Any, *, groups: int) -> None:
        self.peers, self.cluster = FakePeerServer(), Cluster()
        self.failed: list[tuple[int, RufusError]] = []
        self.drains: list[Drain] = []
        config = ServeConfig(model="m", groups=groups)
        self.states = [
            GroupState(group_settings(config, number), now=time.monotonic())
            for number in range(groups)
        ]
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
        )
        self.tasks: list[Any] = []
        self.groups = [Group(number, state, shared) for number, state in enumerate(self.states)]
        events = LinkEvents(serving=lambda _: None, drain=self.drains.append,
                            drained=lambda: None, status=self.status)  # fmt: skip
        self.desk = LinkDesk(self.peers, self.link, self.groups, events)

    def state_again(self, group: Group) -> GroupState:
        settings, before = group.state.settings, group.state
        self.states[group.number] = state = GroupState(
            settings, now=time.monotonic(), epoch=before.epoch, serial=before.serial
        )
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
        for number, group in enumerate(self.groups):
            await group.start(())
            hello = LeaderHello(leader_id=f"e{number}", role="engine", group=number)
            await self.desk.take(f"e{number}".encode(), hello)
            await self.bring_up(group)
        self.take()

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


def run(tmp_path: Any, scenario: Callable[[Server], Any], *, groups: int = 2) -> None:
    async def whole() -> None:
        server = Server(tmp_path, groups=groups)
        await server.serve()
        await scenario(server)

    asyncio.run(whole())


def test_an_engine_speaks_for_its_own_group_alone(tmp_path):
    async def scenario(server: Server) -> None:
        await server.desk.take(b"e1", LeaderProgress(steps_done=7, steps_in_flight=0))
        assert server.groups[0].engine.progress is None
        assert server.groups[1].engine.progress.steps_done == 7
        await server.desk.take(b"e1", EpochLost(epoch=1, reason="hung"))
        phases = [state.phase for state in server.states]
        assert phases == [ev.GroupPhase.READY, ev.GroupPhase.RECOVERING]
        lost = [peer for peer, message in server.take() if isinstance(message, EpochLost)]
        assert lost == [b"e1"]

    run(tmp_path, scenario)


def test_the_api_process_hears_of_a_loss_and_of_the_return(tmp_path):
    async def scenario(server: Server) -> None:
        (member,) = server.states[1].by_rank().values()
        await server.groups[1].handle(ev.Lost(follower_id=member.follower_id, reason="killed"))
        assert server.words() == [(1, "lost")]
        await server.bring_up(server.groups[1])
        assert server.words() == [(1, "open")]

    run(tmp_path, scenario)


def test_an_api_process_that_comes_later_hears_of_every_group(tmp_path):
    async def scenario(server: Server) -> None:
        await server.desk.take(b"e0", EpochLost(epoch=1, reason="hung"))
        server.take()
        await server.desk.take(b"api", LeaderHello(leader_id="m", role="api"))
        assert server.words() == [(0, "lost"), (1, "open")]

    run(tmp_path, scenario)


def test_with_one_group_there_is_nothing_to_choose(tmp_path):
    async def scenario(server: Server) -> None:
        await server.desk.take(b"e0", EpochLost(epoch=1, reason="hung"))
        assert server.words() == []
        assert "no other group" in (await server.ask(DrainGroup(group=0))).error

    run(tmp_path, scenario, groups=1)


def test_the_last_group_that_takes_requests_is_not_drained(tmp_path):
    async def scenario(server: Server) -> None:
        assert await server.ask(DrainGroup(group=0)) == Ack()
        assert "no other group" in (await server.ask(DrainGroup(group=1))).error
        assert server.groups[1].takes_requests

    run(tmp_path, scenario)


def test_a_drained_group_serves_again_once_it_was_restarted(tmp_path):
    async def scenario(server: Server) -> None:
        assert await server.ask(DrainGroup(group=1)) == Ack()
        assert server.words() == [(1, "out")]
        assert server.groups[1].status(engine_silent_s=10).state == "draining"
        await server.desk.take(b"api", GroupIdle(group=1))
        status = server.status()
        assert [group.state for group in status.groups] == ["ready", "drained"]
        assert (status.ready, status.detail) == (True, "group 1 is out: drained")
        (before,) = (m.follower_id for m in server.states[1].by_rank().values())
        assert await server.ask(RestartGroup(group=1)) == Ack()
        await asyncio.gather(*server.tasks)
        assert server.cluster.killed == [before]
        assert server.words() == [(1, "out"), (1, "out")]
        await server.bring_up(server.groups[1])
        assert server.words() == [(1, "open")]
        assert server.status().detail == ""

    run(tmp_path, scenario)


def test_a_loss_does_not_bring_a_drained_group_back(tmp_path):
    async def scenario(server: Server) -> None:
        await server.ask(DrainGroup(group=1))
        await server.desk.take(b"e1", EpochLost(epoch=1, reason="hung"))
        await server.groups[1].handle(ev.Tick())
        assert {word for _, word in server.words()} == {"out"}

    run(tmp_path, scenario)


def test_a_follower_is_restarted_in_the_group_that_is_named(tmp_path):
    async def scenario(server: Server) -> None:
        (before,) = (m.follower_id for m in server.states[1].by_rank().values())
        assert await server.ask(RestartFollower(node_rank=0, group=1)) == Ack()
        await asyncio.gather(*server.tasks)
        assert server.cluster.killed == [before]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (RestartFollower(node_rank=3, group=1), "there is no follower 3"),
        (RestartGroup(group=2), "there is no group 2"),
        (DrainGroup(group=-1), "there is no group -1"),
    ],
)
def test_what_is_not_there_cannot_be_restarted(tmp_path, order, error):
    async def scenario(server: Server) -> None:
        assert error in (await server.ask(order)).error

    run(tmp_path, scenario)


def test_an_engine_that_can_step_no_group_fails_its_own(tmp_path):
    async def scenario(server: Server) -> None:
        failed = GroupFailed(reason="another shape", exit_code=FollowerError.exit_code)
        await server.desk.take(b"e1", failed)
        ((number, error),) = server.failed
        assert (number, type(error), str(error)) == (1, FollowerError, "another shape")
        assert "has failed" in (await server.ask(RestartFollower(node_rank=0, group=1))).error

    run(tmp_path, scenario)


def test_a_group_that_failed_is_formed_anew_on_request(tmp_path):
    async def scenario(server: Server) -> None:
        failed = GroupFailed(reason="another shape", exit_code=FollowerError.exit_code)
        await server.desk.take(b"e1", failed)
        server.groups[1].end()
        server.take()
        assert await server.ask(RestartGroup(group=1)) == Ack()
        assert server.words() == [(1, "out")]
        hello = LeaderHello(leader_id="next", role="engine", group=1)
        await server.desk.take(b"f1", hello)
        await server.bring_up(server.groups[1])
        assert server.words() == [(1, "open")]
        assert (server.states[1].epoch, server.status().detail) == (2, "")

    run(tmp_path, scenario)


def test_other_orders_are_obeyed(tmp_path):
    async def scenario(server: Server) -> None:
        trace = TraceSteps(num_steps=1, path="x", group=1)
        assert await server.ask(trace) == Ack()
        assert (b"e1", trace) in server.take()
        assert await server.ask(Drain(grace_s=1.0)) == Ack()
        assert server.drains == [Drain(grace_s=1.0)]
        assert (await server.ask(StatusRequest())).epoch == 1

    run(tmp_path, scenario)


def test_a_new_engine_is_told_of_its_group(tmp_path):
    async def scenario(server: Server) -> None:
        server.states[1]._engine = ""
        hello = LeaderHello(leader_id="next", role="engine", group=1)
        await server.desk.take(b"f1", hello)
        told = [peer for peer, message in server.take() if isinstance(message, GroupReady)]
        assert told == [b"f1"]
        await server.desk.take(b"x", LeaderHello(leader_id="x", role="engine", group=9))
        assert server.link.group_of(b"x") is None

    run(tmp_path, scenario)
