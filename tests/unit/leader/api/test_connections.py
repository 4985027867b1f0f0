import resource

import pytest

from rufus_serve.leader.api.connections import affordable_connections, make_room
from rufus_serve.leader.api.http_error import HttpError


class Peer:
    def __init__(self, address: str, idle_since: float | None) -> None:
        self.address, self.idle_since, self.dropped = address, idle_since, False

    def drop(self) -> None:
        self.dropped = True


def dropped(peers: list[Peer]) -> list[int]:
    return [number for number, peer in enumerate(peers) if peer.dropped]


def test_nobody_goes_while_there_is_room() -> None:
    peers = [Peer("a", 1.0), Peer("a", 2.0)]
    make_room(peers, "a", most=3, most_per_address=0)
    assert dropped(peers) == []


def test_of_the_address_that_has_most_idle_ones_the_oldest_goes() -> None:
    peers = [Peer("few", 1.0), Peer("many", 5.0), Peer("many", 4.0), Peer("many", None)]
    make_room(peers, "new", most=4, most_per_address=0)
    assert dropped(peers) == [2]


def test_a_connection_that_is_served_is_never_dropped() -> None:
    peers = [Peer("a", None), Peer("b", None)]
    with pytest.raises(HttpError, match="2 connections are open") as refused:
        make_room(peers, "c", most=2, most_per_address=0)
    assert refused.value.status == 503
    assert dropped(peers) == []


def test_an_address_with_too_many_loses_one_of_its_own() -> None:
    peers = [Peer("other", 1.0), Peer("a", 9.0), Peer("a", 8.0)]
    make_room(peers, "a", most=9, most_per_address=2)
    assert dropped(peers) == [2]


def test_an_address_whose_connections_are_all_served_is_refused() -> None:
    peers = [Peer("other", 1.0), Peer("a", None), Peer("a", None)]
    with pytest.raises(HttpError, match="2 connections are open from a") as refused:
        make_room(peers, "a", most=9, most_per_address=2)
    assert refused.value.status == 429
    assert dropped(peers) == []


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
