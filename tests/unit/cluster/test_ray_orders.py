import socket
from collections.abc import Iterator

import pytest

from rufus_serve.cluster.base import FollowerExit
from rufus_serve.cluster.ray_orders import Came, Ended, Kill, Launch, Wire
from rufus_serve.protocol.specs import FollowerSpec

pytestmark = pytest.mark.timeout(10)


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    wires = tuple(Wire(end) for end in socket.socketpair())
    yield wires[0], wires[1]
    for wire in wires:
        wire.close()


def test_orders_and_news_arrive_as_they_were_sent(ends):
    supervisor, child = ends
    spec = FollowerSpec(
        config={"model": "a\nb"}, node_rank=1, follower_id="1.2", control_endpoint="e", token="t"
    )
    for order in (Launch(spec=spec), Kill(follower_id="1.2")):
        supervisor.send(order)
        assert child.next_order() == order
    for news in (Came(nodes=()), Ended(exit=FollowerExit(follower_id="1.2", code=-9))):
        child.send(news)
        assert supervisor.next_news() == news


def test_either_end_hears_that_the_other_hung_up(ends):
    supervisor, child = ends
    supervisor.hang_up()
    assert child.next_order() is None
    assert supervisor.next_news() is None


def test_what_is_sent_to_nobody_is_no_error(ends):
    supervisor, child = ends
    child.close()
    supervisor.send(Kill(follower_id="0.1"))
    assert supervisor.next_news() is None


def test_a_message_that_was_cut_off_is_the_end(ends):
    supervisor, child = ends
    child._socket.sendall(b'{"type":"Came"')
    child.hang_up()
    assert supervisor.next_news() is None
