"""Killed and hung followers: every stream goes on to the token it would have had."""

import signal
import time
from collections.abc import Iterator

import pytest

from rufus_serve.supervisor import orders
from tests.e2e.groups import FLAGS, Group
from tests.e2e.losses import (
    Probe,
    assert_recovered_in_time,
    pids,
    record,
    serving,
    status_of,
    strike,
    wait_ready,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with serving("--nodes=2", *FLAGS) as server:
        yield Group(server)


@pytest.fixture(autouse=True)
def leave_it_serving(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "group" in request.fixturenames:
        wait_ready(request.getfixturevalue("group").server)


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=["rank 0", "rank 1", "both"])
def test_streams_go_on_when_followers_are_killed_while_decoding(
    group: Group, ranks: tuple[int, ...]
) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    with Probe(group.server) as probe:
        blow = strike(group.server, *ranks)
        group.assert_undisturbed(streams.finish())
    assert_recovered_in_time(f"decoding, kill {ranks}", blow)
    assert probe.health == {200}
    assert 503 in probe.ready


def test_a_long_prompt_is_read_again_when_a_follower_is_killed_during_its_prefill(
    group: Group,
) -> None:
    streams = group.start_long()
    time.sleep(0.15)
    blow = strike(group.server, 1)
    assert streams.num_chunks == 0
    (answer,) = streams.finish()
    answer.assert_same(group.long_expected[0])
    blow.wait_recovered()


def test_streams_go_on_when_the_replacement_is_killed_while_it_loads(group: Group) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    first = strike(group.server, 1)
    first.seconds_until(r"^follower 1 on \S+: loading")
    second = strike(group.server, 1)
    group.assert_undisturbed(streams.finish())
    second.wait_recovered()
    assert pids(group.server)[0] == first.pids_before[0]


def test_streams_go_on_when_the_survivor_is_killed_while_the_replacement_loads(
    group: Group,
) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    strike(group.server, 1).seconds_until(r"^follower 1 on \S+: loading")
    second = strike(group.server, 0)
    group.assert_undisturbed(streams.finish())
    second.wait_recovered()


def test_an_idle_group_recovers_and_answers_the_next_request(group: Group) -> None:
    blow = strike(group.server, 0)
    group.assert_undisturbed(group.start().finish())
    assert_recovered_in_time("idle, kill (0,)", blow)


def test_streams_go_on_when_a_follower_hangs(group: Group) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    blow = strike(group.server, 1, number=signal.SIGSTOP)
    group.assert_undisturbed(streams.finish())
    blow.wait_recovered()
    record("decoding, SIGSTOP (1,)", [blow])


def test_streams_go_on_when_a_follower_is_restarted_on_request(group: Group) -> None:
    before, restarts = pids(group.server), status_of(group.server).restarts
    streams = group.start()
    streams.wait_until_each_began()
    orders.restart_follower(
        port=group.server.port, folder="", group=0, node_rank=1, deadline_s=60.0
    )
    group.assert_undisturbed(streams.finish())
    after = pids(group.server)
    assert (after[0], status_of(group.server).restarts) == (before[0], restarts)
    assert after[1] != before[1]
