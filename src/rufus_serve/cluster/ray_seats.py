"""Which Ray node a follower goes to: the rules alone, without Ray."""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from rufus_serve.cluster.base import NodeInfo


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Room for one follower on a node."""

    node_id: str
    """Ray's name of the node; a host that joins again gets another one."""
    number: int
    """Of the seat, on its node."""
    host: str
    address: str


def seats(
    nodes: Sequence[Mapping[str, Any]], *, resource: str, spread: bool, here: str
) -> tuple[Seat, ...]:
    """The seats of all live nodes (as `ray.nodes()` tells of them), nearest to `here` first.

    Places go by this order: rank 0 sends the logits, and had best sit beside the leader. With
    `spread`, a node has one follower at most.
    """
    found = [
        Seat(
            node_id=node["NodeID"],
            number=number,
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
        )
        for node in nodes
        if node["Alive"]
        for number in range(_room(node, resource, spread=spread))
    ]
    return tuple(
        sorted(
            found,
            key=lambda seat: (
                seat.address != here, ipaddress.ip_address(seat.address), seat.node_id, seat.number,
            ),
        )
    )  # fmt: skip


def choose(found: Sequence[Seat], taken: Collection[Seat], *, place: int) -> Seat | None:
    """The seat at `place` if it is free, else another; None if none is.

    Stand-bys (place -1) take the last one, so as to leave the near ones to ranks.
    """
    free = [seat for seat in found if seat not in taken]
    if not free:
        return None
    if 0 <= place < len(found) and found[place] in free:
        return found[place]
    return free[0] if place >= 0 else free[-1]


def choose_at(found: Sequence[Seat], taken: Collection[Seat], *, address: str) -> Seat | None:
    """A free seat on the host with `address`; None if there is none."""
    return next((seat for seat in found if seat.address == address and seat not in taken), None)


def occupied(found: Sequence[Seat], held: Sequence[Seat]) -> list[Seat]:
    """The seats that followers on `held` ones take of those found.

    A host that joined again has new seats; the follower that it still runs takes one of them.
    """
    taken = [seat for seat in held if seat in found]
    for seat in held:
        successor = None if seat in found else choose_at(found, taken, address=seat.address)
        if successor is not None:
            taken.append(successor)
    return taken


def nodes_of(found: Sequence[Seat]) -> tuple[NodeInfo, ...]:
    """One entry for each seat."""
    return tuple(NodeInfo(host=seat.host, address=seat.address, slots=1) for seat in found)


def _room(node: Mapping[str, Any], resource: str, *, spread: bool) -> int:
    slots = int(node["Resources"].get(resource, 0))
    return min(slots, 1) if spread else slots
