"""A leader on a host without a follower, and two followers on one host that share its address."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.errors import ClusterError
from tests.e2e.losses import pids, status_of, strike
from tests.e2e.models import assert_greedy, prompt, tiny_checkpoint
from tests.e2e.server import _TAG, ROOT
from tests.multihost import hosts
from tests.multihost.hosts import PROGRAM, Network
from tests.multihost.spread import RAY_PORT, SpreadServer, wait_until, write_token

pytestmark = [
    pytest.mark.timeout(200),
    hosts.NEEDED,
]

ALONE = (
    "--no-cluster.follower-on-leader-host", "--max-model-len=256", "--dtype=float32",
    "--buckets.prefill=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(2) as network:
        yield network


def assert_serves(server: SpreadServer, model: Path) -> None:
    tokens = prompt(70)
    assert_greedy(model, tokens, server.greedy(tokens, 8))


def test_a_leader_may_have_a_host_to_itself(network: Network, model: Path, tmp_path: Path) -> None:
    first, second = network.hosts
    with first.entered():
        server = SpreadServer(
            network, model, "--nodes=1", *ALONE, token=write_token(tmp_path / "t")
        )
        try:
            server.offer(second)
            server.wait_ready()
            assert_serves(server, model)
            assert second.has(pids(server)[0])
            strike(server, 0).wait_recovered()
            assert_serves(server, model)
            assert second.has(pids(server)[0])
            assert server.stop() == 0
            # It waits for the next leader.
            assert server.offers[second.name].poll() is None
            assert server.withdraw(second) == 0
        finally:
            server.remove()


@pytest.mark.parametrize("place", [0, 1], ids=["beside the leader", "on another host"])
def test_two_followers_share_an_address(
    network: Network, model: Path, tmp_path: Path, place: int
) -> None:
    """As in a pod of the profile that halves a host's cores."""
    first, shared = network.hosts[0], network.hosts[place]
    with first.entered():
        token = write_token(tmp_path / "t")
        server = SpreadServer(network, model, "--nodes=2", *ALONE, token=token)
        log = server.folder / "both.log"
        both = shared.start(
            str(ROOT / "docker" / "run-followers.sh"), "2",
            f"--leader={first.address}:{RAY_PORT}", f"--address={shared.address}",
            f"--token-file={token}",
            log=log,
            environ={
                _TAG: server.tag, "TMPDIR": str(server.temporary),
                "PATH": f"{Path(PROGRAM).parent}:/usr/sbin:/usr/bin:/bin",
            },
        )  # fmt: skip
        try:
            server.wait_ready()
            assert_serves(server, model)
            before = pids(server)
            assert len(before) == 2
            assert all(shared.has(pid) for pid in before.values())
            strike(server, 1).wait_recovered()
            assert_serves(server, model)
            assert status_of(server).restarts == 1
            both.terminate()
            assert both.wait(30) == 0, log.read_text()
            assert server.stop() == 0
        finally:
            both.kill()
            both.wait()
            server.remove()


@pytest.fixture
def waiting(network: Network, model: Path, tmp_path: Path) -> Iterator[SpreadServer]:
    """A leader of whose hosts none comes."""
    with network.hosts[0].entered():
        flags = ("--nodes=2", "--timeouts.join-s=15")
        server = SpreadServer(network, model, *flags, token=write_token(tmp_path / "t"))
        try:
            wait_until(lambda: "on 1 other run:" in server.log, lambda: server.log)
            yield server
        finally:
            server.remove()


def test_a_leader_whose_hosts_do_not_come_says_what_to_run(waiting: SpreadServer) -> None:
    assert waiting.process.wait(60) == ClusterError.exit_code
    last = waiting.log.splitlines()[-1]
    assert "only these offered themselves: " in last
    assert "run `rufus-serve follower --leader 10.213.77.1:6379` on the others" in last


def test_a_leader_that_waits_for_hosts_ends_when_asked(waiting: SpreadServer) -> None:
    time.sleep(7.0)
    began = time.monotonic()
    assert waiting.stop() == 0, waiting.log
    assert time.monotonic() - began < 6.0
