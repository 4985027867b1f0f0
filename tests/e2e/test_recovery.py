"""Killed and hung followers: every stream goes on to the token it would have had."""

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from rufus_serve.errors import RestartBudgetSpent, RufusError
from rufus_serve.supervisor import orders
from tests.e2e.groups import FLAGS, Group
from tests.e2e.losses import (
    Probe,
    Strike,
    assert_no_process_remains,
    pids,
    record,
    serving,
    slowness,
    status_of,
    strike,
    wait_ready,
)
from tests.e2e.server import Server
from tests.e2e.streams import Streams

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


def kill_whatever_follows(server: Server, rank: int) -> None:
    """Kill each process of `rank` before the group makes a step, until the server gives up."""
    deadline = time.monotonic() + 100
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(RufusError, psutil.NoSuchProcess):
            if pid := pids(server).get(rank):
                psutil.Process(pid).kill()
        time.sleep(0.1)


def assert_failed_for_good(server: Server, streams: Streams) -> None:
    """Every open request gets an error, and the process ends with the code of a spent budget."""
    began = time.monotonic()
    for answer in streams.finish():
        assert "restart budget spent" in answer.error, answer
    assert server.process.wait(20) == RestartBudgetSpent.exit_code
    assert time.monotonic() - began < 20.0
    assert "the first follower that failed was 1." in server.log
    spent = "restart budget spent (3 restarts without progress in 600 s); first: follower 1 on "
    assert spent in server.log
    assert_no_process_remains(server)


def assert_recovered_in_time(what: str, blow: Strike) -> None:
    recovered_s = blow.wait_recovered()
    record(what, [blow])
    assert blow.noticed_s() < 1.0 * slowness()
    assert recovered_s - blow.load_s() < 3.0 * slowness()


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
    orders.restart_follower(port=group.server.port, folder="", node_rank=1, deadline_s=60.0)
    group.assert_undisturbed(streams.finish())
    after = pids(group.server)
    assert (after[0], status_of(group.server).restarts) == (before[0], restarts)
    assert after[1] != before[1]


def test_three_followers_without_async_scheduling_recover_until_the_budget_is_spent() -> None:
    flags = ("--nodes=3", "--no-async-scheduling", *FLAGS, "--recovery.max-restarts=3")
    with serving(*flags) as server:
        group = Group(server)
        for ranks in ((1,), (0, 2)):
            streams = group.start()
            streams.wait_until_each_began()
            blow = strike(server, *ranks)
            group.assert_undisturbed(streams.finish())
            assert_recovered_in_time(f"three followers, kill {ranks}", blow)
        assert status_of(server).restarts == 3
        streams = group.start()
        streams.wait_until_each_began()
        kill_whatever_follows(server, 1)
        assert_failed_for_good(server, streams)
