import asyncio

from fake_peers import FakePeerServer

from rufus_serve.protocol.messages import GroupLost, LeaderHello, LeaderProgress
from rufus_serve.supervisor.leader_link import LeaderLink

LOST = GroupLost(epoch=1, reason="x")
PROGRESS = LeaderProgress(steps_done=5, steps_in_flight=0)


def hello(role: str) -> LeaderHello:
    return LeaderHello(leader_id="a", role=role)


def test_each_role_has_a_connection_of_its_own():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"e", hello("engine"))
    link.hello(b"a", hello("api"))
    asyncio.run(link.to_engine(LOST))
    assert asyncio.run(link.to_api(LOST))
    assert server.take() == [(b"e", LOST), (b"a", LOST)]


def test_without_a_leader_nothing_is_sent():
    server = FakePeerServer()
    link = LeaderLink(server)
    asyncio.run(link.to_engine(LOST))
    assert not asyncio.run(link.to_api(LOST))
    assert server.take() == []


def test_an_api_process_that_hung_up_is_told_of():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"a", hello("api"))
    server.gone.add(b"a")
    assert not asyncio.run(link.to_api(LOST))


def test_a_new_engine_starts_without_progress():
    link = LeaderLink(FakePeerServer())
    link.hello(b"e", hello("engine"))
    link.took_progress(PROGRESS, 7.0, {})
    assert (link.progress, link.progress_at) == (PROGRESS, 7.0)
    link.hello(b"a", hello("api"))
    assert link.progress is PROGRESS
    link.hello(b"f", hello("engine"))
    assert link.progress is None


def test_a_leader_that_ended_is_forgotten():
    server = FakePeerServer()
    link = LeaderLink(server)
    link.hello(b"e", hello("engine"))
    link.took_progress(PROGRESS, 7.0, {})
    link.forget()
    asyncio.run(link.to_engine(LOST))
    assert server.take() == []
    assert link.progress is None
