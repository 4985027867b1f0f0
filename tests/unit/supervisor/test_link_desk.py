"""Orders and engines' messages reach the group that they are about."""

import asyncio

import pytest
from desk_server import Server, run

from rufus_serve.errors import FollowerError
from rufus_serve.protocol.messages import (
    Ack,
    Drain,
    DrainGroup,
    EpochLost,
    GroupFailed,
    GroupIdle,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    RestartFollower,
    RestartGroup,
    StatusRequest,
    TraceSteps,
)
from rufus_serve.supervisor import group_events as ev


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
