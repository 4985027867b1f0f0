"""The ZeroMQ step channel between processes: what a thread cannot show."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from channel_group import INFO, KEYS, LONG_S, SOON_S, reply_to, step

from rufus_serve.channel import reply_memory
from rufus_serve.channel.base import FollowerLost
from rufus_serve.channel.zeromq import ZmqFollowerChannel, ZmqLeaderChannel
from rufus_serve.protocol.messages import StepEndpoint

FORK = multiprocessing.get_context("fork")


def follow(node_rank: int, announced: Any) -> None:
    channel = ZmqFollowerChannel(
        INFO, KEYS, node_rank=node_rank, host="node", address="127.0.0.1", port=0
    )
    channel.begin(1)
    announced.put((node_rank, channel.endpoint.endpoint))
    while True:
        request = channel.receive(timeout_s=1.0)
        if request is not None and request.want_logits:
            channel.reply(reply_to(request, node_rank))


def die_while_writing(announced: Any) -> None:
    """Follow, and be killed between a second large reply's payload and its head."""
    channel = ZmqFollowerChannel(INFO, KEYS, node_rank=0, host="node", address="127.0.0.1", port=0)
    channel.begin(1)
    announced.put(channel.endpoint.endpoint)
    while (request := channel.receive(timeout_s=LONG_S)) is not None:
        if request.step_id == 2:
            reply_memory._RECORD = SimpleNamespace(
                size=reply_memory._RECORD.size,
                pack_into=lambda *_: os.kill(os.getpid(), signal.SIGKILL),
            )
        logits = np.full((4, 49152), request.step_id, np.float32)
        channel.reply(msgspec.structs.replace(reply_to(request, 0), logits=logits))


def lead(endpoint: StepEndpoint, outcome: Any) -> None:
    leader = ZmqLeaderChannel(INFO, KEYS)
    leader.connect(1, [endpoint], deadline_s=LONG_S)
    leader.broadcast(step(1))
    outcome.put(leader.gather(1, deadline_s=LONG_S)[0].step_id)
    os.kill(os.getpid(), signal.SIGKILL)


class Followers:
    """Two follower processes, forked before any channel exists here."""

    def __init__(self) -> None:
        announced = FORK.SimpleQueue()
        self.processes: list[BaseProcess] = [
            FORK.Process(target=follow, args=(rank, announced), daemon=True) for rank in range(2)
        ]
        for process in self.processes:
            process.start()
        self.endpoints = [
            StepEndpoint(node_rank=rank, host="node", endpoint=endpoint)
            for rank, endpoint in sorted(announced.get() for _ in self.processes)
        ]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
            process.close()


@pytest.fixture
def followers() -> Iterator[Followers]:
    followers = Followers()
    yield followers
    followers.close()


def test_a_killed_follower_is_noticed_within_a_second(followers: Followers) -> None:
    leader = ZmqLeaderChannel(INFO, KEYS)
    leader.connect(1, followers.endpoints, deadline_s=LONG_S)
    leader.broadcast(step(1))
    leader.gather(1, deadline_s=LONG_S)
    followers.processes[1].kill()
    started = time.monotonic()
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost, match="follower 1: connection closed"):
        leader.gather(2, deadline_s=LONG_S)
    assert time.monotonic() - started < SOON_S
    leader.close()


def test_a_follower_that_is_not_there_is_named_at_the_deadline(followers: Followers) -> None:
    followers.processes[0].kill()
    followers.processes[0].join()
    leader = ZmqLeaderChannel(INFO, KEYS)
    with pytest.raises(FollowerLost, match="follower 0: no answer to the handshake from node"):
        leader.connect(1, followers.endpoints, deadline_s=0.3)
    leader.close()


def test_a_new_leader_takes_over_from_one_that_was_killed(followers: Followers) -> None:
    outcome = FORK.SimpleQueue()
    first = FORK.Process(target=lead, args=(followers.endpoints[0], outcome), daemon=True)
    first.start()
    assert outcome.get() == 1
    first.join()
    assert first.exitcode == -signal.SIGKILL
    second = ZmqLeaderChannel(INFO, KEYS)
    second.connect(1, followers.endpoints, deadline_s=LONG_S)
    second.broadcast(step(1))
    assert len(second.gather(1, deadline_s=LONG_S)) == 2
    second.close()


def test_what_a_follower_left_half_written_in_memory_is_never_read() -> None:
    announced = FORK.SimpleQueue()
    process = FORK.Process(target=die_while_writing, args=(announced,), daemon=True)
    process.start()
    endpoint = StepEndpoint(node_rank=0, host="node", endpoint=announced.get())
    leader = ZmqLeaderChannel(INFO, KEYS)
    leader.connect(1, [endpoint], deadline_s=LONG_S)
    leader.broadcast(step(1))
    (first,) = leader.gather(1, deadline_s=LONG_S)
    leader.broadcast(step(2))
    with pytest.raises(FollowerLost, match="follower 0: connection closed"):
        leader.gather(2, deadline_s=LONG_S)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (first.logits == 1).all()
    leader.close()
