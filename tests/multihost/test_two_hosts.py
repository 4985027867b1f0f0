"""Leader and follower 0 on one host, follower 1 on another that joins by itself."""

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.losses import pids, status_of, strike
from tests.e2e.models import assert_greedy, prompt
from tests.e2e.server import DEMO_MODEL
from tests.e2e.streams import Answer, Streams, chat, completion
from tests.multihost import hosts
from tests.multihost.hosts import Host, Network
from tests.multihost.spread import SpreadServer, on_hosts, wait_until

pytestmark = [
    pytest.mark.timeout(300),
    hosts.NEEDED,
]

ASKS = [
    chat("What is the capital of France?", max_tokens=48),
    completion("Once upon a time", seed=7, temperature=1.0, max_tokens=48, ignore_eos=True),
]
FLAGS = ("--max-model-len=512", "--dtype=float32", "--buckets.prefill=64")
QUICK = ("--timeouts.heartbeat-lost-s=3", "--timeouts.step-floor-s=3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadServer]:
    folder = tmp_path_factory.mktemp("group")
    with Network(2) as network, on_hosts(network, folder, *FLAGS, *QUICK) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: SpreadServer) -> list[Answer]:
    return Streams(server.port, server.name, ASKS).finish()


def assert_unchanged(found: list[Answer], expected: list[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        one.assert_same(other)


def test_shards_on_two_hosts_give_the_reference_text(server: SpreadServer) -> None:
    first, second = server.network.hosts
    assert "Paris" in server.ask()
    tokens = prompt(100)
    assert_greedy(DEMO_MODEL, tokens, server.greedy(tokens, 16))
    by_rank = pids(server)
    assert first.has(by_rank[0])
    assert second.has(by_rank[1])


def test_the_leader_prints_what_the_other_host_has_to_run(server: SpreadServer) -> None:
    address = server.network.hosts[0].address
    line = f"rufus-serve follower --leader {address}:6379 --token-file {server.token}"
    assert line in server.log


def test_nothing_of_ours_listens_on_other_addresses(server: SpreadServer) -> None:
    """Ray's own processes cannot be bound to one address; they have ports of their own."""
    for host in server.network.hosts:
        for listener in host.listeners():
            address, _, port = listener.rpartition(":")
            is_rays = int(port) == 6379 or 6500 <= int(port) <= 6819
            assert address in {host.address, "127.0.0.1"} or is_rays, listener


def test_a_follower_killed_on_the_other_host_costs_no_token(
    server: SpreadServer, undisturbed: list[Answer]
) -> None:
    host = server.network.hosts[1]
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    blow = strike(server, 1)
    assert_unchanged(streams.finish(), undisturbed)
    blow.wait_recovered()
    assert host.has(pids(server)[1])
    assert server.offers[host.name].poll() is None


@pytest.mark.parametrize(("name", "on"), [("raylet", 0), ("gcs_server", 0), ("raylet", 1)])
def test_no_follower_and_no_stream_notices_that_ray_died(
    server: SpreadServer, undisturbed: list[Answer], name: str, on: int
) -> None:
    host, before = server.network.hosts[on], status_of(server)
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    (victim,) = [
        each
        for each in psutil.process_iter(["name"])
        if each.info["name"] == name and has(host, each.pid)
    ]
    victim.kill()
    assert_unchanged(streams.finish(), undisturbed)
    wait_until(lambda: agents(server.network) == 2, lambda: server.log)
    now = status_of(server)
    assert (now.epoch, now.restarts) == (before.epoch, before.restarts)
    assert [each.pid for each in now.followers] == [each.pid for each in before.followers]


def test_a_follower_is_replaced_on_a_host_that_joined_ray_anew(
    server: SpreadServer, undisturbed: list[Answer]
) -> None:
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    blow = strike(server, 1)
    assert_unchanged(streams.finish(), undisturbed)
    blow.wait_recovered()
    assert server.network.hosts[1].has(pids(server)[1])


def agents(network: Network) -> int:
    """Live agents on all hosts."""
    return sum(
        each.info["name"].startswith("ray::Follower")
        for each in psutil.process_iter(["name"])
        if each.info["name"] and any(has(host, each.pid) for host in network.hosts)
    )


def has(host: Host, pid: int) -> bool:
    """Whether the process runs on that host, if it still does."""
    try:
        return host.has(pid)
    except OSError:
        return False


def test_a_cut_link_is_noticed_and_streams_go_on_once_it_is_mended(
    server: SpreadServer, undisturbed: list[Answer]
) -> None:
    host, restarts = server.network.hosts[1], status_of(server).restarts
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    host.set_link("down")
    try:
        wait_until(lambda: status_of(server).restarts > restarts, lambda: server.log)
        time.sleep(3.0)
    finally:
        host.set_link("up")
    assert_unchanged(streams.finish(), undisturbed)
    assert status_of(server).ready


def test_a_host_that_comes_back_with_another_address_is_taken_again(
    server: SpreadServer, undisturbed: list[Answer]
) -> None:
    host = server.network.hosts[1]
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    host.move("10.213.77.42")
    assert_unchanged(streams.finish(), undisturbed)
    assert "address changed from 10.213.77.2 to 10.213.77.42" in server.offer_log(host).read_text()
    assert host.has(pids(server)[1])
