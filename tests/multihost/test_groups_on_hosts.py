"""Two groups on two hosts, and a third host that joins later."""

from collections.abc import Iterator

import pytest

from rufus_serve.errors import ClusterError
from rufus_serve.protocol.messages import FollowerStatus
from rufus_serve.supervisor import orders
from tests.e2e.losses import status_of
from tests.e2e.streams import Answer, Streams, chat, completion
from tests.multihost import hosts
from tests.multihost.hosts import Network
from tests.multihost.spread import SpreadServer, on_hosts, wait_until

pytestmark = [
    pytest.mark.timeout(300),
    hosts.NEEDED,
]
ASKS = [
    chat("What is the capital of France?", max_tokens=96),
    completion("Once upon a time", seed=7, temperature=1.0, max_tokens=96, ignore_eos=True),
    completion("The moon is", logprobs=3, max_tokens=96, ignore_eos=True),
    completion("My favourite colour", n=2, seed=11, temperature=1.0, max_tokens=96),
]
FLAGS = (
    "--nodes=1", "--groups=2", "--max-model-len=512", "--dtype=float32", "--buckets.prefill=64",
    "--timeouts.heartbeat-lost-s=3", "--timeouts.step-floor-s=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadServer]:
    folder = tmp_path_factory.mktemp("groups")
    with Network(2) as network, on_hosts(network, folder, *FLAGS) as server:
        wait_ready(server, num_groups=2)
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: SpreadServer) -> list[Answer]:
    return Streams(server.port, server.name, ASKS).finish()


def wait_ready(server: SpreadServer, *, num_groups: int) -> None:
    def ready() -> bool:
        return [each.ready for each in status_of(server).groups] == [True] * num_groups

    wait_until(ready, lambda: server.log)


def follower_of(server: SpreadServer, group: int) -> FollowerStatus:
    (found,) = (each for each in status_of(server).followers if each.group == group)
    return found


def scale(server: SpreadServer, groups: int) -> None:
    orders.scale(port=server.port, folder="", groups=groups, deadline_s=60.0)


def has_scaled(server: SpreadServer, groups: int) -> bool:
    try:
        scale(server, groups)
    except ClusterError as error:
        assert "need a node each" in str(error), "else the host is there"  # noqa: PT017
        return False
    return True


def test_each_group_is_on_a_host_of_its_own(server: SpreadServer) -> None:
    for number, host in enumerate(server.network.hosts):
        assert host.has(follower_of(server, number).pid)


def test_requests_of_a_host_that_is_gone_go_on_in_the_other_group(
    server: SpreadServer, undisturbed: list[Answer]
) -> None:
    host = server.network.hosts[1]
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    host.set_link("down")
    try:
        for answer, expected in zip(streams.finish(), undisturbed, strict=True):
            answer.assert_same(expected)
        status = status_of(server)
        assert ([each.ready for each in status.groups], status.ready) == ([True, False], True)
    finally:
        host.set_link("up")
    wait_ready(server, num_groups=2)
    assert host.has(follower_of(server, 1).pid)


def test_a_group_more_needs_a_host_more(server: SpreadServer, undisturbed: list[Answer]) -> None:
    with pytest.raises(ClusterError, match=r"3 followers need a node each; there are 2: .*run"):
        scale(server, 3)
    third = server.network.add_host()
    with server.network.hosts[0].entered():
        server.offer(third)
    wait_until(lambda: has_scaled(server, 3), lambda: server.log)
    assert third.has(follower_of(server, 2).pid)
    for answer, expected in zip(
        Streams(server.port, server.name, ASKS).finish(), undisturbed, strict=True
    ):
        answer.assert_same(expected)
    scale(server, 2)
    assert [each.group for each in status_of(server).groups] == [0, 1]
