"""Followers that die again and again without a step in between end the server."""

import contextlib
import time

import psutil
import pytest

from rufus_serve.errors import RestartBudgetSpent, RufusError
from tests.e2e.groups import FLAGS, Group
from tests.e2e.losses import (
    assert_no_process_remains,
    assert_recovered_in_time,
    pids,
    serving,
    status_of,
    strike,
)
from tests.e2e.server import Server
from tests.e2e.streams import Streams

pytestmark = pytest.mark.timeout(300)


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
