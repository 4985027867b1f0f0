import asyncio
import re

import pytest
from fake_peers import FakePeerServer

from rufus_serve import __version__
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ModelError
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    FollowerFailed,
    FollowerForming,
    FollowerGaveUp,
    FollowerHello,
    FollowerReady,
    Heartbeat,
    HeartbeatAck,
    Refused,
    Stop,
)
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.followers import FollowerDesk
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.report import Report

CONFIG = ServeConfig(model="m", nodes=2)


class Desk:
    def __init__(self) -> None:
        self.server = FakePeerServer()
        self.state = GroupState(ev.GroupSettings(nodes=2), now=0.0)
        self.state.start((), 0.0)
        self.desk = FollowerDesk(self.server, CONFIG, [self.state], Report())
        self.ids = {rank: member.follower_id for rank, member in self.state.by_rank().items()}

    def take(self, peer: bytes, message) -> list[ev.Event]:
        return asyncio.run(self.desk.take(peer, message))

    def hello(self, rank: int = 0, **changes) -> FollowerHello:
        fields = {
            "protocol_version": PROTOCOL_VERSION,
            "package_version": __version__,
            "config_hash": CONFIG.group_hash(),
            "follower_id": self.ids[rank],
            "node_rank": rank,
            "host": "node-a",
            "address": "10.0.0.1",
            "pid": 42,
        }
        return FollowerHello(**fields | changes)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_hello_is_acknowledged_and_means_that_the_follower_joined(desk):
    (joined,) = desk.take(b"p", desk.hello())
    assert joined == ev.Joined(follower_id=desk.ids[0], host="node-a", address="10.0.0.1", pid=42)
    assert desk.server.take() == [(b"p", HeartbeatAck())]


def test_a_second_hello_on_the_same_connection_is_a_sign_of_life_only(desk):
    desk.take(b"p", desk.hello())
    assert desk.take(b"p", desk.hello()) == [ev.Heard(follower_id=desk.ids[0])]


def test_a_hello_on_another_connection_joins_again(desk):
    desk.take(b"p", desk.hello())
    (joined,) = desk.take(b"q", desk.hello())
    assert isinstance(joined, ev.Joined)
    asyncio.run(desk.desk.send(desk.ids[0], Stop()))
    assert desk.server.take()[-1] == (b"q", Stop())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol_version": 99}, "speaks protocol 99"),
        ({"config_hash": "other"}, "start both with the same settings"),
        ({"follower_id": "0.77"}, "not \\(or no longer\\) part of this group"),
    ],
)
def test_a_follower_of_another_kind_is_refused_with_the_reason(desk, change, reason):
    assert desk.take(b"p", desk.hello(**change)) == []
    ((peer, refused),) = desk.server.take()
    assert isinstance(refused, Refused)
    assert peer == b"p"
    assert re.search(reason, refused.reason)


def test_heartbeats_are_acknowledged(desk):
    desk.take(b"p", desk.hello())
    desk.server.take()
    events = desk.take(b"p", Heartbeat(stale_steps=2))
    assert events == [ev.Heard(follower_id=desk.ids[0], stale_steps=2)]
    assert desk.server.take() == [(b"p", HeartbeatAck())]


def test_a_heartbeat_that_overtook_its_hello_means_nothing(desk):
    assert desk.take(b"early", Heartbeat()) == []
    assert desk.server.take() == []


def test_phases_of_grouping_become_events(desk):
    desk.take(b"p", desk.hello())
    (grouping,) = desk.take(b"p", FollowerForming(epoch=6))
    assert grouping == ev.Grouping(follower_id=desk.ids[0], epoch=6)
    (gave_up,) = desk.take(b"p", FollowerGaveUp(epoch=6, reason="peer left"))
    assert gave_up == ev.GaveUp(follower_id=desk.ids[0], epoch=6, reason="peer left")


def test_readiness_carries_the_step_endpoint(desk):
    desk.take(b"p", desk.hello(1))
    (ready,) = desk.take(b"p", FollowerReady(epoch=2, endpoint="tcp://10.0.0.1:5", warm_up_s=3))
    assert (ready.epoch, ready.warm_up_s) == (2, 3)
    assert (ready.endpoint.node_rank, ready.endpoint.endpoint) == (1, "tcp://10.0.0.1:5")


def test_what_a_follower_reported_outweighs_the_way_it_ended(desk):
    desk.take(b"p", desk.hello())
    (failed,) = desk.take(
        b"p", FollowerFailed(phase="loading", error="no tensor x", exit_code=ModelError.exit_code)
    )
    assert (failed.reason, failed.kind) == ("no tensor x", ModelError)
    ended = desk.desk.ended(FollowerExit(follower_id=desk.ids[0], code=3))
    assert (ended.reason, ended.kind) == ("loading: no tensor x", ModelError)
    assert desk.desk.ended(FollowerExit(follower_id="1.2", code=-9)).reason == "killed by signal 9"


def test_a_replaced_follower_that_still_lives_is_sent_away(desk):
    desk.take(b"p", desk.hello())
    desk.server.take()
    desk.desk.forget(desk.ids[0])
    assert desk.take(b"p", Heartbeat()) == []
    asyncio.run(desk.desk.send(desk.ids[0], Stop()))
    ((_, refused),) = desk.server.take()
    assert isinstance(refused, Refused)


def test_all_known_followers_are_told_to_stop(desk):
    desk.take(b"p", desk.hello(0))
    desk.take(b"q", desk.hello(1))
    desk.server.take()
    asyncio.run(desk.desk.stop_all("the end"))
    assert sorted(peer for peer, _ in desk.server.take()) == [b"p", b"q"]


def test_a_silent_follower_is_spoken_for_by_its_connection(desk):
    for rank, peer in enumerate((b"p", b"q")):
        desk.take(peer, desk.hello(rank))
    desk.server.gone.add(b"q")
    assert asyncio.run(desk.desk.find_connected(1.2)) == []
    found = asyncio.run(desk.desk.find_connected(1.3))
    assert found == [ev.Connected(follower_id=desk.ids[0])]
