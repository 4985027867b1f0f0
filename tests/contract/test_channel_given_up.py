"""An epoch that the leader gives up, over every implementation of the step channel."""

import threading
import time

import pytest
from channel_group import (
    LONG_S,
    SOON_S,
    Group,
    endpoints,
    reply_to,
    silence,
    step,
)

from rufus_serve.channel.base import NOBODY, FollowerLost


def test_an_epoch_given_up_from_another_thread_ends_a_waiting_gather_and_names_nobody(
    group: Group,
) -> None:
    leader, _ = group.connected(silence, silence)
    leader.broadcast(step(1))
    giving_up = threading.Timer(0.2, leader.abandon, args=(1, "node 1 is gone"))
    started = time.monotonic()
    giving_up.start()
    with pytest.raises(FollowerLost, match=r"^node 1 is gone$") as gone:
        leader.gather(1, deadline_s=LONG_S)
    giving_up.join()
    assert time.monotonic() - started < 0.2 + SOON_S
    assert gone.value.node_rank == NOBODY


def test_an_epoch_given_up_gets_no_further_step_but_replies_that_are_in_count(
    group: Group,
) -> None:
    leader, (one,) = group.connected(reply_to)
    leader.broadcast(step(1))
    leader.gather(1, deadline_s=LONG_S)
    leader.abandon(1, "given up")
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost, match="given up"):
        leader.gather(2, deadline_s=LONG_S)
    assert [request.step_id for request in one.seen] == [1]


def test_an_epoch_given_up_before_its_handshake_is_not_connected_to(group: Group) -> None:
    serving = group.serve(group.follower(epoch=7))
    leader = group.leader()
    leader.abandon(7, "lost already")
    started = time.monotonic()
    with pytest.raises(FollowerLost, match="lost already"):
        leader.connect(7, endpoints(serving), deadline_s=LONG_S)
    assert time.monotonic() - started < SOON_S
    serving.begin(8)
    leader.connect(8, endpoints(serving), deadline_s=LONG_S)
    leader.broadcast(step(1, epoch=8))
    assert leader.gather(1, deadline_s=LONG_S)


def test_giving_up_an_older_epoch_leaves_the_current_one_alone(group: Group) -> None:
    leader, serving = group.connected(reply_to)
    serving[0].begin(3)
    leader.connect(3, endpoints(*serving), deadline_s=LONG_S)
    leader.abandon(2, "late news")
    leader.broadcast(step(1, epoch=3))
    assert leader.gather(1, deadline_s=LONG_S)
