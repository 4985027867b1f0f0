"""Which followers are started on this host without Ray."""

import pytest

from rufus_serve.cluster.own_host import OwnHost, Running
from rufus_serve.cluster.ray_orders import RaySettings
from rufus_serve.protocol.specs import STANDBY, FollowerSpec

HERE, ELSEWHERE = "10.0.0.1", "10.0.0.9"


def own_host(*, spread: bool, slots: int, existing: str = "") -> OwnHost:
    settings = RaySettings(
        followers=2, spread=spread, address=HERE, port=0, existing=existing, join_s=60.0,
        python="", log_dir="", local_slots=slots,
    )  # fmt: skip
    return OwnHost(settings, lambda _: None)


def spec_of(node_rank: int, *, group: int = 0) -> FollowerSpec:
    return FollowerSpec(
        config={"nodes": 2}, node_rank=node_rank, follower_id="f", control_endpoint="e",
        token="t", group=group,
    )  # fmt: skip


@pytest.mark.parametrize(("rank", "group"), [(0, 0), (1, 0), (1, 3), (STANDBY, 0)])
def test_without_other_hosts_every_place_is_here(rank: int, group: int) -> None:
    assert own_host(spread=False, slots=64).takes(spec_of(rank, group=group), [])


@pytest.mark.parametrize(
    ("rank", "group", "here"), [(0, 0, True), (1, 0, False), (0, 1, False), (STANDBY, 0, False)]
)
def test_with_other_hosts_only_the_first_place_is_here(rank: int, group: int, here: bool) -> None:
    assert own_host(spread=True, slots=1).takes(spec_of(rank, group=group), []) is here


def test_a_leaders_host_without_a_follower_takes_none() -> None:
    assert not own_host(spread=True, slots=0).takes(spec_of(0), [])


def test_a_place_is_free_once_what_ran_there_is_killed() -> None:
    host = own_host(spread=True, slots=1)
    assert not host.takes(spec_of(0), [Running(7, HERE)])
    assert host.takes(spec_of(0), [Running(7, HERE, killed=True), Running(8, ELSEWHERE)])


def test_in_a_cluster_that_others_run_only_ray_knows() -> None:
    host = own_host(spread=False, slots=64, existing="10.0.0.1:6379")
    assert not host.takes(spec_of(0), [])
