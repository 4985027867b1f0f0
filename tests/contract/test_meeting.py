"""Followers of several hosts find each other, whoever else knocks at the door."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from runtime_group import SOON_S

from rufus_serve.errors import CollectiveAborted
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu.meeting import Meeting
from rufus_serve.runtime.cpu.visitors import Card, read_challenge

pytestmark = pytest.mark.timeout(60)

SECRET = "5ecre7" * 5


class Door:
    """A rendezvous on loopback as hosts have it, and who goes there."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.pool = ThreadPoolExecutor(8)
        self.aborted = threading.Event()
        self.sockets: list[socket.socket] = []

    def join(
        self, rank: int, *, secret: str = SECRET, num_nodes: int = 2, deadline_s: float = SOON_S
    ) -> "Future[Meeting]":
        rendezvous = f"tcp://127.0.0.1:{self.port}/{secret}"
        group = GroupSpec(
            epoch=1, node_rank=rank, num_nodes=num_nodes, rendezvous=rendezvous, same_host=False,
            num_blocks=2,
        )  # fmt: skip
        return self.pool.submit(Meeting, group, aborted=self.aborted, deadline_s=deadline_s)

    def knock(self) -> socket.socket:
        """A stranger's connection, once somebody listens."""
        stranger, give_up = socket.socket(), time.monotonic() + 10
        self.sockets.append(stranger)
        stranger.settimeout(5)
        while stranger.connect_ex(("127.0.0.1", self.port)):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        return stranger


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.aborted.set()
    for each in door.sockets:
        each.close()
    door.pool.shutdown()


def meet(*joining: "Future[Meeting]") -> None:
    meetings = [each.result(SOON_S + 5) for each in joining]
    for meeting in meetings:
        assert meeting.lost_peer() is None
    for meeting in meetings:
        meeting.close()


def test_followers_meet_and_each_knows_the_other_by_rank(door):
    first, second = door.join(0), door.join(1)
    assert (list(first.result(10).peers), list(second.result(10).peers)) == ([1], [0])
    meet(first, second)


@pytest.mark.parametrize("said", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n"])
def test_any_number_of_strangers_holds_up_nobody(door, said):
    first = door.join(0)
    for _ in range(120):
        door.knock().sendall(said)
    began = time.monotonic()
    meet(first, door.join(1))
    assert time.monotonic() - began < 5.0


def test_strangers_that_never_stop_coming_lose_their_place(door):
    first, stop = door.join(0), threading.Event()

    def crowd() -> None:
        while not stop.is_set():
            door.knock()

    crowding = door.pool.submit(crowd)
    try:
        time.sleep(0.5)
        second = door.join(1)
        meet(first, second)
    finally:
        stop.set()
        with pytest.raises(AssertionError):
            crowding.result(20)


def test_a_follower_of_another_epoch_is_not_admitted(door):
    first, wrong = door.join(0), door.join(1, secret="0" * 30, deadline_s=1.0)
    with pytest.raises(CollectiveAborted, match="follower 0 did not come"):
        wrong.result(10)
    meet(first, door.join(1))


def test_what_an_impostor_hears_opens_no_door(door):
    """Somebody in rank 0's place takes a visitor's card; it is worth nothing at the real one."""
    with socket.create_server(("127.0.0.1", door.port)) as impostor:
        visitor = door.join(1)
        heard, _ = impostor.accept()
        door.sockets.append(heard)
        heard.sendall(b"c" * 16)
        card = heard.recv(52, socket.MSG_WAITALL)
    first = door.join(0, num_nodes=3)
    stranger = door.knock()
    read_challenge(stranger)
    stranger.sendall(card)
    assert stranger.recv(1) == b""
    meet(first, visitor, door.join(2, num_nodes=3))


def test_a_host_that_cannot_prove_itself_is_left_and_the_real_one_found(door):
    with socket.create_server(("127.0.0.1", door.port)) as impostor:
        visitor = door.join(1)
        heard, _ = impostor.accept()
        heard.sendall(b"c" * 16)
        heard.recv(52, socket.MSG_WAITALL)
        heard.sendall(b"p" * 32)
        heard.close()
    meet(door.join(0), visitor)


def test_two_challenges_are_never_answered_alike():
    one, other = (Card(b"s", 1, b"c" * 16) for _ in range(2))
    assert one.text != other.text
    assert one.answer != other.answer


def test_no_error_tells_the_secret(door):
    with socket.create_server(("127.0.0.1", door.port)), pytest.raises(CollectiveAborted) as taken:
        door.join(0).result(10)
    with pytest.raises(CollectiveAborted) as alone:
        door.join(1, deadline_s=0.2).result(10)
    for error in (taken, alone):
        assert SECRET not in str(error.value)
        assert f"tcp://127.0.0.1:{door.port}" in str(error.value)
