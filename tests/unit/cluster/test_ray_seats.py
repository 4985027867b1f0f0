from typing import Any

from rufus_serve.cluster.base import NodeInfo
from rufus_serve.cluster.ray_seats import Seat, choose, choose_at, nodes_of, occupied, seats
from rufus_serve.protocol.specs import STANDBY, FollowerSpec

HERE = "10.0.0.1"


def node(name: str, address: str, *, slots: int = 1, alive: bool = True) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerHostname": f"host-{name}",
        "NodeManagerAddress": address,
        "Alive": alive,
        "Resources": {"rufus_follower": float(slots), "CPU": 1.0} if slots else {"CPU": 1.0},
    }


def seats_of(*nodes: dict[str, Any], spread: bool = True) -> tuple[Seat, ...]:
    return seats(nodes, resource="rufus_follower", spread=spread, here=HERE)


def test_seats_go_from_this_host_outwards_by_address():
    found = seats_of(node("c", "10.0.0.10"), node("b", "10.0.0.9"), node("a", HERE))
    assert [seat.address for seat in found] == [HERE, "10.0.0.9", "10.0.0.10"]
    assert nodes_of(found)[0] == NodeInfo(host="host-a", address=HERE, slots=1)


def test_dead_nodes_and_nodes_without_the_resource_have_no_seats():
    assert seats_of(node("a", HERE, alive=False), node("b", "10.0.0.9", slots=0)) == ()


def test_a_node_has_one_seat_if_followers_are_to_be_spread_and_all_it_offers_otherwise():
    assert len(seats_of(node("a", HERE, slots=3))) == 1
    assert [seat.number for seat in seats_of(node("a", HERE, slots=3), spread=False)] == [0, 1, 2]


def test_each_rank_has_a_seat_of_its_own():
    found = seats_of(node("a", HERE), node("b", "10.0.0.2"), node("c", "10.0.0.3"))
    assert [choose(found, (), place=rank) for rank in range(3)] == list(found)


def test_a_rank_whose_seat_is_taken_or_gone_takes_the_nearest_free_one():
    found = seats_of(node("a", HERE), node("b", "10.0.0.2"))
    assert choose(found, found[:1], place=0) == found[1]
    assert choose(found, (), place=5) == found[0]
    assert choose(found, found, place=0) is None


def test_a_stand_by_leaves_the_near_seats_to_ranks():
    found = seats_of(node("a", HERE), node("b", "10.0.0.2"), node("c", "10.0.0.3"))
    assert choose(found, (), place=-1) == found[2]


def test_a_running_follower_is_found_on_its_host_only():
    found = seats_of(node("a", HERE), node("b", "10.0.0.2"))
    assert choose_at(found, (), address="10.0.0.2") == found[1]
    assert choose_at(found, found[1:], address="10.0.0.2") is None
    assert choose_at(found, (), address="10.0.0.7") is None


def test_a_follower_keeps_its_host_occupied_when_that_host_joins_again():
    before = seats_of(node("a", HERE), node("b", "10.0.0.2"))
    after = seats_of(node("a", HERE), node("b2", "10.0.0.2"))
    assert occupied(after, before) == list(after)
    assert occupied(after, [before[1]]) == [after[1]]
    assert occupied(seats_of(node("a", HERE)), [before[1]]) == []


def test_followers_that_share_a_host_occupy_different_seats_of_it():
    unknown = Seat(node_id="", number=0, host="", address=HERE)
    found = seats_of(node("a", HERE, slots=2), spread=False)
    assert occupied(found, [unknown, unknown]) == list(found)
    assert occupied(found, [unknown, found[0]]) == [found[0], found[1]]


def test_a_groups_ranks_sit_side_by_side_and_groups_apart():
    def place(group: int, rank: int) -> int:
        return FollowerSpec(
            config={"nodes": 2}, node_rank=rank, group=group, follower_id="x",
            control_endpoint="", token="",
        ).place  # fmt: skip

    assert [place(group, rank) for group in range(2) for rank in range(2)] == [0, 1, 2, 3]
    assert place(0, STANDBY) == place(1, STANDBY) == STANDBY
