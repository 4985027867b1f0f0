"""Ray is no lifeline: any of its processes may die, and no follower, stream or client notices."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.groups import FLAGS, Group
from tests.e2e.losses import assert_no_process_remains, serving, status_of, strike, wait_ready
from tests.e2e.ray_losses import Blow, kept_away, kill, ray_processes
from tests.e2e.server import DEMO_MODEL, Server

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with serving("--nodes=2", *FLAGS) as server:
        yield Group(server)
        server.stop()
        server.assert_nothing_remains()


@pytest.mark.parametrize("victim", ["gcs", "raylet", "driver", "follower agent"])
def test_streams_go_on_undisturbed_when_a_part_of_ray_is_killed(group: Group, victim: str) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    blow = Blow(group, victim)
    blow.assert_unnoticed(streams.finish())
    blow.wait_back()


def test_status_and_metrics_tell_that_ray_is_away_and_how_often_it_was_started_again(
    group: Group,
) -> None:
    blow = Blow(group, "gcs")
    before = status_of(group.server).cluster_restarts
    while status_of(group.server).cluster_up:
        pass
    away = status_of(group.server)
    assert away.cluster_detail.startswith("Ray is away for ")
    assert away.healthy
    assert away.ready
    blow.wait_back()
    assert status_of(group.server).cluster_restarts == before + 1
    assert group.server.metric("rufus_cluster_restarts_total") >= before
    assert group.server.metric("rufus_cluster_up") in (0.0, 1.0)


def test_a_follower_lost_while_ray_is_away_does_not_wait_for_it(group: Group) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    with kept_away(group.server):
        strike(group.server, 1).wait_recovered()
        group.assert_undisturbed(streams.finish())
        assert not status_of(group.server).cluster_up
    while not status_of(group.server).cluster_up:
        time.sleep(0.1)
    wait_ready(group.server)


def test_an_adopted_follower_that_is_killed_is_replaced(group: Group) -> None:
    """Its agent is not the one that started it."""
    for number in (signal.SIGKILL, signal.SIGSTOP):
        streams = group.start()
        streams.wait_until_each_began()
        blow = strike(group.server, 0, number=number)
        group.assert_undisturbed(streams.finish())
        blow.wait_recovered()


def test_followers_know_nothing_of_ray(group: Group) -> None:
    for follower in group.server.followers():
        assert not any(name.startswith("RAY_") for name in follower.environ())
        assert os.environ.get("OMP_NUM_THREADS") == follower.environ().get("OMP_NUM_THREADS")
        assert follower.nice() == psutil_nice()
    for process in group.server.processes():
        if "rufus_serve.leader" in process.cmdline() or process.pid == group.server.process.pid:
            assert "RAY_AUTH_TOKEN" not in process.environ()


def psutil_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_nothing_listens_beyond_loopback(group: Group) -> None:
    for process in group.server.processes() + group.server.followers():
        for connection in process.net_connections("inet"):
            if connection.status == "LISTEN":
                address = connection.laddr.ip
                assert address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (process, connection)


def test_ray_may_be_killed_while_the_server_starts() -> None:
    def strike_early(server: Server) -> None:
        kill(server, "gcs")

    with serving("--nodes=1", *FLAGS, meanwhile=strike_early) as server:
        assert "Paris" in server.ask()


def test_nothing_is_left_when_the_supervisor_is_killed() -> None:
    server = Server(DEMO_MODEL, "--nodes=1", *FLAGS)
    try:
        server.wait_ready()
        assert ray_processes(server, "dashboard agent")
        server.processes()[0].kill()
        server.process.wait()
        assert_no_process_remains(server, deadline_s=20.0)
    finally:
        server.remove()


@pytest.mark.parametrize(("flag", "kept"), [("--keep-logs", True), ("--no-keep-logs", False)])
def test_the_logs_of_ray_and_followers_are_kept_only_if_asked_for(flag: str, kept: bool) -> None:
    server = Server(DEMO_MODEL, "--nodes=1", *FLAGS, flag)
    try:
        server.wait_ready()
        server.stop()
        logs = list(server.temporary.glob("rufus-serve-*/logs/follower-*.log"))
        rays = list(server.temporary.rglob("ray-*/r/session_*/logs"))
        assert bool(logs) == bool(rays) == kept, server.remains()
    finally:
        server.remove()
