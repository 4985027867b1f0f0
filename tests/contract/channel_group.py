"""Leaders and followers of every transport, for the suites over step channels."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.faults import FaultyFollowerChannel
from rufus_serve.channel.inproc import InprocFollowerChannel, InprocLeaderChannel, InprocNetwork
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.zeromq import ZmqFollowerChannel, ZmqLeaderChannel
from rufus_serve.protocol.messages import Phase, StepEndpoint, StepFailed, StepReply, StepRequest

KEYS = GroupKeys.from_token("the token of the group")
OTHER_KEYS = GroupKeys.from_token("the token of another group")
INFO = HelloInfo(config_hash="aaaa", sender_id="leader-1")
SOON_S = 1.0
LONG_S = 20.0

Leader = ZmqLeaderChannel | InprocLeaderChannel
Follower = ZmqFollowerChannel | InprocFollowerChannel
Answer = Callable[[StepRequest, int], StepReply | StepFailed | None]


def step(step_id: int, *, epoch: int = 1, tokens: int = 4) -> StepRequest:
    return StepRequest(
        step_id=step_id,
        epoch=epoch,
        phase=Phase.DECODE,
        token_ids=np.arange(tokens, dtype=np.int32) + step_id,
        num_computed_tokens=np.zeros(tokens, np.int32),
        context_lens=np.ones(tokens, np.int32),
        block_table=np.zeros((tokens, 2), np.int32),
        slot_mapping=np.arange(tokens, dtype=np.int32),
    )


def reply_to(request: StepRequest, node_rank: int) -> StepReply:
    return StepReply(
        step_id=request.step_id, epoch=request.epoch, node_rank=node_rank, compute_s=0.0
    )


def silence(request: StepRequest, node_rank: int) -> None:
    return None


class Serving:
    """A follower's thread: answers steps until told to stop."""

    def __init__(self, channel: Follower | FaultyFollowerChannel, answer: Answer) -> None:
        self.channel = channel
        self.seen: list[StepRequest] = []
        self._answer = answer
        self._epochs: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def begin(self, epoch: int) -> None:
        self._epochs.append(epoch)
        while self._epochs:
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._epochs:
                self.channel.begin(self._epochs[0])
                self._epochs.pop()
            request = self.channel.receive(timeout_s=0.02)
            if request is not None:
                self.seen.append(request)
                answer = self._answer(request, self.channel.endpoint.node_rank)
                if answer is not None:
                    self.channel.reply(answer)


class Group:
    """Makes channels of one transport, and takes them down again."""

    def __init__(self, transport: str) -> None:
        self._network = InprocNetwork() if transport == "inproc" else None
        self._shares_memory = transport == "memory"
        self._serving: list[Serving] = []
        self._channels: list[Leader | Follower] = []

    def leader(self, *, keys: GroupKeys = KEYS, info: HelloInfo = INFO) -> Leader:
        if self._network is None:
            leader: Leader = ZmqLeaderChannel(info, keys)
        else:
            leader = InprocLeaderChannel(self._network, info, keys)
        self._channels.append(leader)
        return leader

    def follower(
        self, node_rank: int = 0, *, info: HelloInfo = INFO, epoch: int | None = 1
    ) -> Follower:
        if self._network is None:
            follower: Follower = ZmqFollowerChannel(
                info,
                KEYS,
                node_rank=node_rank,
                host="node",
                address="127.0.0.1",
                port=0,
                share_memory=self._shares_memory,
            )
        else:
            follower = InprocFollowerChannel(self._network, info, KEYS, node_rank=node_rank)
        if epoch is not None:
            follower.begin(epoch)
        self._channels.append(follower)
        return follower

    def serve(
        self, channel: Follower | FaultyFollowerChannel, answer: Answer = reply_to
    ) -> Serving:
        serving = Serving(channel, answer)
        self._serving.append(serving)
        return serving

    def connected(self, *answers: Answer) -> tuple[Leader, list[Serving]]:
        """A leader and one follower per answer, in epoch 1."""
        serving = [self.serve(self.follower(rank), answer) for rank, answer in enumerate(answers)]
        leader = self.leader()
        leader.connect(1, endpoints(*serving), deadline_s=LONG_S)
        return leader, serving

    def close(self) -> None:
        for serving in self._serving:
            serving.stop()
        for channel in self._channels:
            channel.close()


def endpoints(*serving: Serving) -> list[StepEndpoint]:
    return [one.channel.endpoint for one in serving]


TRANSPORTS = ("zeromq", "memory", "inproc")
"""`memory` is ZeroMQ with large replies in shared memory."""


@pytest.fixture(params=TRANSPORTS)
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """Over every implementation; fails if a thread outlives it."""
    before = set(threading.enumerate())
    group = Group(request.param)
    yield group
    group.close()
    assert not set(threading.enumerate()) - before, "a thread was left over"
