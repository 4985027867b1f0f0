"""Groups come and go while the server serves."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from desk_server import Server, run

from rufus_serve.protocol.messages import (
    Ack,
    DrainGroup,
    EpochLost,
    GroupIdle,
    LeaderHello,
    LeaderProgress,
    RestartGroup,
    Scale,
)
from rufus_serve.supervisor import scaling


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_POLL_S", 0.001)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def scale(server: Server, groups: int) -> str:
    answer = await server.ask(Scale(groups=groups))
    assert isinstance(answer, Ack)
    return answer.error


def test_a_group_that_comes_is_served_as_soon_as_it_is_ready(tmp_path):
    async def scenario(server: Server) -> None:
        assert await scale(server, 2) == ""
        assert server.words() == [(0, "open"), (1, "lost")]
        assert [each.state for each in server.status().groups] == ["ready", "starting"]
        await asyncio.gather(*server.tasks)
        assert server.cluster.launched[-1].startswith("1-0.")
        await server.engine_comes(1)
        await server.bring_up(server.groups[1])
        assert server.words() == [(1, "open")]
        assert [each.ready for each in server.status().groups] == [True, True]

    run(tmp_path, scenario, groups=1)


def test_once_there_were_several_the_api_process_always_hears_of_the_one(tmp_path):
    async def scenario(server: Server) -> None:
        assert await scale(server, 2) == ""
        assert await scale(server, 1) == ""
        await until(lambda: len(server.groups) == 1)
        server.take()
        await server.desk.take(b"e0", EpochLost(epoch=1, reason="hung"))
        assert server.words() == [(0, "lost")]

    run(tmp_path, scenario, groups=1)


def test_a_group_goes_once_it_has_no_request_left(tmp_path):
    async def scenario(server: Server) -> None:
        (follower,) = (each.follower_id for each in server.states[2].by_rank().values())
        assert await scale(server, 2) == ""
        assert server.words() == [(2, "out")]
        await asyncio.sleep(0.02)
        assert len(server.groups) == 3
        assert follower not in server.cluster.killed
        await server.desk.take(b"api", GroupIdle(group=2))
        await until(lambda: len(server.groups) == 2)
        assert len(server.states) == 2
        assert server.words() == [(2, "gone")]
        await until(lambda: follower in server.cluster.killed)
        assert [each.group for each in server.status().groups] == [0, 1]

    run(tmp_path, scenario, groups=3)


def test_what_comes_late_of_a_group_that_went_means_nothing(tmp_path):
    async def scenario(server: Server) -> None:
        await scale(server, 1)
        await server.desk.take(b"api", GroupIdle(group=1))
        await until(lambda: len(server.groups) == 1)
        await server.desk.take(b"e1", LeaderProgress(steps_done=7, steps_in_flight=0))
        await server.desk.take(b"api", GroupIdle(group=1))
        await server.desk.take(b"e1", LeaderHello(leader_id="e1", role="engine", group=1))
        assert server.link.group_of(b"e1") is None
        assert "no group 1" in (await server.ask(RestartGroup(group=1))).error

    run(tmp_path, scenario)


def test_an_api_process_that_comes_later_forgets_groups_that_went(tmp_path):
    async def scenario(server: Server) -> None:
        await scale(server, 1)
        await server.desk.take(b"api", GroupIdle(group=1))
        await until(lambda: len(server.groups) == 1)
        server.take()
        await server.desk.take(b"api", LeaderHello(leader_id="m", role="api"))
        assert server.words() == [(0, "open"), (1, "gone")]
        await scale(server, 2)
        server.take()
        await server.desk.take(b"api", LeaderHello(leader_id="n", role="api"))
        assert server.words() == [(0, "open"), (1, "lost")]

    run(tmp_path, scenario)


def test_a_group_that_comes_in_the_place_of_one_that_went_has_other_followers(tmp_path):
    async def scenario(server: Server) -> None:
        before, epoch = server.states[1].members.keys(), server.states[1].epoch
        await scale(server, 1)
        await server.desk.take(b"api", GroupIdle(group=1))
        await until(lambda: len(server.groups) == 1)
        await scale(server, 2)
        assert not before & server.states[1].members.keys()
        await server.engine_comes(1)
        await server.bring_up(server.groups[1])
        assert server.states[1].epoch > epoch

    run(tmp_path, scenario)


def test_a_group_that_was_to_go_stays_if_it_is_wanted_again(tmp_path):
    async def scenario(server: Server) -> None:
        await scale(server, 1)
        await server.desk.take(b"e0", EpochLost(epoch=1, reason="hung"))
        assert await scale(server, 2) == ""
        assert server.words() == [(1, "out"), (0, "lost"), (1, "open")]
        await server.desk.take(b"api", GroupIdle(group=1))
        await asyncio.sleep(0.02)
        assert server.groups[1].takes_requests
        assert server.cluster.killed == []

    run(tmp_path, scenario)


def test_a_group_that_never_served_goes_at_once(tmp_path):
    async def scenario(server: Server) -> None:
        await scale(server, 4)
        await scale(server, 2)
        await until(lambda: len(server.groups) == 2)
        assert server.status().detail == ""

    run(tmp_path, scenario)


def test_a_group_that_is_restarted_on_its_way_out_goes_all_the_same(tmp_path):
    async def scenario(server: Server) -> None:
        await scale(server, 1)
        await server.ask(RestartGroup(group=1))
        await server.bring_up(server.groups[1])
        await until(lambda: not server.groups[1].takes_requests)
        await server.desk.take(b"api", GroupIdle(group=1))
        await until(lambda: len(server.groups) == 1)

    run(tmp_path, scenario)


def test_room_is_made_for_stand_bys_too(tmp_path):
    async def scenario(server: Server) -> None:
        server.cluster.room = 4
        refusal = "2 groups cannot be had: 5 followers need a node each; there are 4"
        assert await scale(server, 2) == refusal
        assert len(server.groups) == 1
        server.cluster.room = 5
        assert await scale(server, 2) == ""

    settings = {"nodes": 2, "recovery": {"standby_nodes": 1}}
    server = Server(tmp_path, groups=1, **settings)
    asyncio.run(scenario(server))


@pytest.mark.parametrize(
    ("groups", "settings", "said"),
    [
        (0, {}, "0 groups are refused: a server has 1 to 64"),
        (65, {}, "65 groups are refused: a server has 1 to 64"),
        (3, {"cluster": {"ray_address": "h:1"}}, "where no other host can reach it"),
        (3, {"runtime": "neuron"}, "NeuronCores were shared out"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, groups, settings, said):
    async def scenario() -> None:
        server = Server(tmp_path, groups=2, **settings)
        assert said in await scale(server, groups)
        assert len(server.groups) == 2

    asyncio.run(scenario())


def test_a_server_that_starts_or_stops_is_not_scaled(tmp_path):
    async def scenario(server: Server) -> None:
        server.obstacle = "the server is stopping"
        assert await scale(server, 3) == "the server is stopping"

    run(tmp_path, scenario)


def test_groups_that_serve_do_not_go_if_none_is_left_that_does(tmp_path):
    async def scenario(server: Server) -> None:
        await server.ask(DrainGroup(group=0))
        assert "none of the 1 that would be left" in await scale(server, 1)
        assert server.groups[1].takes_requests

    run(tmp_path, scenario)
