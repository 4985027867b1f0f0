"""Sixteen clients on two groups of two followers: whatever is lost, each gets the same tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rufus_serve.supervisor import orders
from tests.e2e import ray_losses
from tests.e2e.losses import Probe, engines_of, serving, status_of
from tests.e2e.moves import Groups
from tests.e2e.recorded import ASKS, LENGTH, TEMPERATURE
from tests.e2e.streams import chat, completion

pytestmark = pytest.mark.timeout(600)


class Clients(Groups):
    asks = (
        *ASKS,
        chat("Name three rivers.", seed=31, max_tokens=LENGTH, temperature=TEMPERATURE),
        completion("In the beginning", logprobs=1, max_tokens=LENGTH),
        completion([3, 1, 4, 1, 5, 9, 2, 6] * 40, max_tokens=LENGTH, ignore_eos=True),
        completion("The sea", seed=32, temperature=TEMPERATURE, max_tokens=2 * LENGTH),
    )


@pytest.fixture(scope="module", params=["--async-scheduling", "--no-async-scheduling"])
def clients(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Clients]:
    assert len(Clients.asks) == 16
    flags = ("--groups=2", "--nodes=2", *Groups.FLAGS, "--cluster.kind=ray", request.param)
    with serving(*flags, model=tiny_model) as server:
        yield Clients(server)


def kill_one_follower(clients: Clients) -> None:
    clients.kill_follower(0, rank=1)


def kill_all_followers_of_a_group(clients: Clients) -> None:
    for rank in (0, 1):
        clients.kill_follower(1, rank)


def kill_an_engine(clients: Clients) -> None:
    engines_of(clients.server)[0].kill()


def drain_one_and_take_it_back(clients: Clients) -> None:
    where = {"port": clients.server.port, "folder": "", "group": 0}
    orders.drain_group(**where, grace_s=120.0)
    orders.restart_group(**where, deadline_s=120.0)


def restart_one_after_the_other(clients: Clients) -> None:
    for group in (0, 1):
        orders.restart_group(port=clients.server.port, folder="", group=group, deadline_s=120.0)


@pytest.mark.parametrize(
    "disturb",
    [
        kill_one_follower,
        kill_all_followers_of_a_group,
        kill_an_engine,
        drain_one_and_take_it_back,
        restart_one_after_the_other,
    ],
)
def test_every_stream_is_whole(clients: Clients, disturb: Callable[[Clients], None]) -> None:
    with Probe(clients.server) as probe:
        streams = clients.start_and_wait()
        disturb(clients)
        clients.assert_undisturbed(streams)
        clients.wait_all_ready()
    assert (probe.health, probe.ready) == ({200}, {200})


@pytest.mark.parametrize("victim", ["gcs", "raylet"])
def test_every_stream_is_whole_and_no_follower_ends_when_ray_is_killed(
    clients: Clients, victim: str
) -> None:
    streams = clients.start_and_wait()
    before, epochs = clients.pids(), [each.epoch for each in status_of(clients.server).groups]
    restarts = status_of(clients.server).cluster_restarts
    ray_losses.kill(clients.server, victim)
    clients.assert_undisturbed(streams)
    assert clients.pids() == before
    assert [each.epoch for each in status_of(clients.server).groups] == epochs
    clients.wait_until(lambda: status_of(clients.server).cluster_restarts > restarts)


def test_a_group_that_loses_a_follower_while_ray_is_away_comes_back(clients: Clients) -> None:
    streams = clients.start_and_wait()
    ray_losses.kill(clients.server, "raylet")
    clients.kill_follower(1)
    clients.assert_undisturbed(streams)
    clients.wait_all_ready(deadline_s=120.0)
