import asyncio

from fake_peers import FakePeerServer

from rufus_serve.protocol.messages import EpochLost, LeaderHello
from rufus_serve.supervisor.leader_link import LeaderLink

LOST = EpochLost(epoch=1, reason="x")


def hello(role: str, group: int = 0) -> LeaderHello:
    return LeaderHello(leader_id="a", role=role, group=group)


def test_the_api_process_and_each_engine_have_a_connection_of_their_own():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"e", hello("engine"))
    link.hello(b"f", hello("engine", 1))
    link.hello(b"a", hello("api"))
    asyncio.run(link.to_engine(1, LOST))
    asyncio.run(link.to_engine(0, LOST))
    assert asyncio.run(link.to_api(LOST))
    assert server.take() == [(b"f", LOST), (b"e", LOST), (b"a", LOST)]


def test_an_engine_is_known_by_its_connection_until_another_succeeds_it():
    link = LeaderLink(FakePeerServer())
    link.hello(b"a", hello("api"))
    link.hello(b"e", hello("engine", 1))
    assert [link.group_of(peer) for peer in (b"a", b"e", b"x")] == [None, 1, None]
    link.hello(b"f", hello("engine", 1))
    assert [link.group_of(peer) for peer in (b"e", b"f")] == [None, 1]


def test_without_a_leader_nothing_is_sent():
    server = FakePeerServer()
    link = LeaderLink(server)
    asyncio.run(link.to_engine(0, LOST))
    assert not asyncio.run(link.to_api(LOST))
    assert server.take() == []


def test_an_api_process_that_hung_up_is_told_of():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"a", hello("api"))
    server.gone.add(b"a")
    assert not asyncio.run(link.to_api(LOST))


def test_a_leader_that_ended_is_forgotten():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"e", hello("engine"))
    link.forget()
    asyncio.run(link.to_engine(0, LOST))
    assert server.take() == []
