import resource

import pytest

from rufus_serve.leader.api.connections import Room, affordable_connections
from rufus_serve.leader.api.http_error import HttpError


class Peer:
    """Enters a room; served from then on if it is told so."""

    def __init__(self, room: Room, address: str, *, served: bool = False) -> None:
        self.address, self.dropped = address, False
        room.enter(self)
        if served:
            room.serves(self)

    def drop(self) -> None:
        self.dropped = True


def dropped(peers: list[Peer]) -> list[int]:
    return [number for number, peer in enumerate(peers) if peer.dropped]


def test_nobody_goes_while_there_is_room() -> None:
    room = Room(3, most_per_address=0)
    peers = [Peer(room, "a") for _ in range(3)]
    assert dropped(peers) == []
    room.leave(peers[1])
    Peer(room, "a")
    assert dropped(peers) == []


def test_of_the_address_that_has_most_idle_ones_the_oldest_goes() -> None:
    room = Room(5, most_per_address=0)
    addresses = ("few", "many", "many", "many")
    peers = [Peer(room, address) for address in addresses]
    peers.append(Peer(room, "many", served=True))
    room.awaits(peers[1])  # its next request begins, or it was answered
    Peer(room, "new")
    assert dropped(peers) == [2]


def test_a_connection_that_is_served_is_never_dropped() -> None:
    room = Room(2, most_per_address=0)
    peers = [Peer(room, "a", served=True), Peer(room, "b", served=True)]
    for _ in range(2):
        with pytest.raises(HttpError, match="2 connections are open") as refused:
            Peer(room, "c")
        assert refused.value.status == 503
    assert dropped(peers) == []
    room.awaits(peers[1])
    Peer(room, "c")
    assert dropped(peers) == [1]


def test_an_address_with_too_many_loses_one_of_its_own() -> None:
    room = Room(9, most_per_address=2)
    peers = [Peer(room, "other"), Peer(room, "a"), Peer(room, "a"), Peer(room, "a")]
    assert dropped(peers) == [1]


def test_an_address_whose_connections_are_all_served_is_refused() -> None:
    room = Room(9, most_per_address=2)
    peers = [Peer(room, "other"), Peer(room, "a", served=True), Peer(room, "a", served=True)]
    with pytest.raises(HttpError, match="2 connections are open from a") as refused:
        Peer(room, "a")
    assert refused.value.status == 429
    assert dropped(peers) == []
    room.leave(peers[1])
    Peer(room, "a")


def test_who_is_gone_or_was_never_in_is_not_awaited() -> None:
    room = Room(1, most_per_address=0)
    gone = Peer(room, "a")
    room.leave(gone)
    room.leave(gone)
    room.awaits(gone)
    last = Peer(room, "b", served=True)
    with pytest.raises(HttpError):
        Peer(room, "c")
    assert dropped([gone, last]) == []


def test_a_full_room_is_entered_without_a_look_at_all_who_are_in() -> None:
    class Counted(Peer):
        looks = 0

        def __hash__(self) -> int:
            Counted.looks += 1
            return id(self)

        def __eq__(self, other: object) -> bool:
            return self is other

    room = Room(500, most_per_address=0)
    peers = [Counted(room, "a") for _ in range(500)]
    Counted.looks = 0
    Counted(room, "a")
    assert Counted.looks < 20
    assert dropped(list(peers)) == [0]


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (1024, 524288, 4096, 4352),
        (1024, 2048, 1792, 2048),
        (1024, 1024, 768, 1024),
        (100, 100, 1, 100),
        (8192, 8192, 4096, 8192),
        (1024, resource.RLIM_INFINITY, 4096, 4352),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, resource.RLIM_INFINITY),
    ],
)
def test_files_are_left_for_what_is_no_client(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, connections: int, raised: int
) -> None:
    limit = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limit.__setitem__(0, both))
    assert affordable_connections(4096) == connections
    assert limit[0] == (raised, hard)
