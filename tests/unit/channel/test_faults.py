import time
from collections import deque

import msgspec
import numpy as np
import pytest

from rufus_serve.channel import faults
from rufus_serve.channel.base import FollowerLost
from rufus_serve.channel.faults import (
    Fault,
    FaultDice,
    FaultPlan,
    FaultyFollowerChannel,
    FaultyLeaderChannel,
    InjectedFault,
    with_follower_faults,
    with_leader_faults,
)
from rufus_serve.errors import ConfigError
from rufus_serve.protocol.messages import Phase, StepEndpoint, StepFailed, StepReply, StepRequest

EMPTY = np.zeros(0, np.int32)


def request(step_id: int) -> StepRequest:
    return StepRequest(
        step_id=step_id,
        epoch=1,
        phase=Phase.DECODE,
        token_ids=EMPTY,
        num_computed_tokens=EMPTY,
        context_lens=EMPTY,
        block_table=EMPTY,
        slot_mapping=EMPTY,
    )


def reply(step_id: int) -> StepReply:
    return StepReply(step_id=step_id, epoch=1, node_rank=1, compute_s=0.0)


class Recorder:
    """Both sides of a channel at once; keeps what it was told."""

    endpoint = StepEndpoint(node_rank=1, host="h", endpoint="e")

    def __init__(self, *step_ids: int) -> None:
        self.incoming = deque(request(step_id) for step_id in step_ids)
        self.sent: list[int] = []
        self.calls: list[str] = []

    def receive(self, *, timeout_s: float) -> StepRequest | None:
        return self.incoming.popleft() if self.incoming else None

    def reply(self, message: object) -> None:
        self.sent.append(message.step_id)  # type: ignore[attr-defined]

    broadcast = reply

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        return [reply(step_id)]

    def begin(self, epoch: int) -> None:
        self.calls.append(f"begin {epoch}")

    def connect(self, epoch: int, endpoints: object, *, deadline_s: float) -> None:
        self.calls.append(f"connect {epoch}")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def abandon(self, epoch: int, reason: str) -> None:
        self.calls.append(f"abandon {epoch}: {reason}")

    def close(self) -> None:
        self.calls.append("close")


def plan(**fault: object) -> FaultPlan:
    return FaultPlan(faults=(Fault(**fault),))  # type: ignore[arg-type]


def received(channel: FaultyFollowerChannel, times: int) -> list[int | None]:
    steps = [channel.receive(timeout_s=0.0) for _ in range(times)]
    return [None if step is None else step.step_id for step in steps]


def test_a_dropped_request_is_not_seen() -> None:
    channel = FaultyFollowerChannel(
        Recorder(1, 2, 3), plan(kind="drop", at="request", step_ids=(2,))
    )
    assert received(channel, 3) == [1, None, 3]


def test_a_duplicated_request_is_seen_twice_but_not_across_epochs() -> None:
    faulty = plan(kind="duplicate", at="request", step_ids=(1, 2), max_count=0)
    channel = FaultyFollowerChannel(Recorder(1, 2, 3), faulty)
    assert received(channel, 3) == [1, 1, 2]
    channel.begin(2)
    assert received(channel, 1) == [3]


@pytest.mark.parametrize(("kind", "sent"), [("drop", [1, 3]), ("duplicate", [1, 2, 2, 3])])
def test_replies_are_dropped_or_doubled(kind: str, sent: list[int]) -> None:
    inner = Recorder()
    channel = FaultyFollowerChannel(inner, plan(kind=kind, step_ids=(2,)))
    for step_id in (1, 2, 3):
        channel.reply(reply(step_id))
    assert inner.sent == sent


def test_a_broken_connection_takes_the_frame_with_it() -> None:
    inner = Recorder(1)
    channel = FaultyFollowerChannel(inner, plan(kind="disconnect", step_ids=(1,)))
    channel.reply(reply(1))
    assert inner.sent == []
    assert inner.calls == ["disconnect"]


def test_a_delay_sleeps_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    inner = Recorder()
    channel = FaultyFollowerChannel(inner, plan(kind="delay", step_ids=(1,), delay_s=0.7))
    channel.reply(reply(1))
    assert slept == [0.7]
    assert inner.sent == [1]


def test_a_raised_fault_says_where() -> None:
    channel = FaultyFollowerChannel(Recorder(4), plan(kind="raise", at="request", step_ids=(4,)))
    with pytest.raises(InjectedFault, match="RUFUS_FAULTS: request of step 4"):
        channel.receive(timeout_s=0.0)


def test_a_fault_of_another_follower_does_not_happen() -> None:
    inner = Recorder()
    channel = FaultyFollowerChannel(inner, plan(kind="drop", step_ids=(1,), node_rank=0))
    channel.reply(reply(1))
    assert inner.sent == [1]


def test_a_fault_happens_at_most_max_count_times() -> None:
    inner = Recorder()
    channel = FaultyFollowerChannel(inner, plan(kind="drop", probability=1.0, max_count=2))
    for step_id in range(5):
        channel.reply(reply(step_id))
    assert inner.sent == [2, 3, 4]


def test_chance_repeats_with_the_seed_and_differs_between_followers() -> None:
    def hits(seed: int, node_rank: int) -> list[int]:
        fault = Fault(kind="drop", probability=0.3, max_count=0)
        dice = FaultDice(FaultPlan(seed=seed, faults=(fault,)), node_rank)
        return [step_id for step_id in range(200) if dice.roll("reply", step_id)]

    assert hits(1, 0) == hits(1, 0)
    assert hits(1, 0) != hits(2, 0)
    assert hits(1, 0) != hits(1, 1)
    assert 30 < len(hits(1, 0)) < 90


def test_the_leader_fails_only_by_faults_of_its_own() -> None:
    inner = Recorder()
    common = FaultyLeaderChannel(inner, plan(kind="drop", at="request", step_ids=(1,)))
    common.broadcast(request(1))
    assert inner.sent == [1]
    own = FaultyLeaderChannel(
        inner, plan(kind="duplicate", at="request", step_ids=(2,), node_rank=-2)
    )
    own.broadcast(request(2))
    assert inner.sent == [1, 2, 2]


def test_a_reply_the_leader_drops_counts_as_silence() -> None:
    channel = FaultyLeaderChannel(Recorder(), plan(kind="drop", step_ids=(1,), node_rank=-2))
    with pytest.raises(FollowerLost, match="silent on step 1"):
        channel.gather(1, deadline_s=1.0)
    assert channel.gather(2, deadline_s=1.0)


def test_other_calls_reach_the_channel() -> None:
    inner = Recorder()
    follower = FaultyFollowerChannel(inner, FaultPlan())
    leader = FaultyLeaderChannel(inner, FaultPlan())
    follower.begin(3)
    leader.connect(4, [], deadline_s=1.0)
    follower.close()
    leader.close()
    assert inner.calls == ["begin 3", "connect 4", "close", "close"]
    assert follower.endpoint == inner.endpoint


def test_without_the_variable_channels_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    inner = Recorder()
    assert with_follower_faults(inner) is inner
    assert with_leader_faults(inner) is inner


def test_the_variable_wraps_channels_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(faults.VARIABLE, '{"faults": [{"kind": "drop", "step_ids": [1]}]}')
    inner = Recorder()
    with_follower_faults(inner).reply(reply(1))
    assert inner.sent == []
    assert isinstance(with_leader_faults(inner), FaultyLeaderChannel)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        '{"fault": []}',
        '{"faults": [{"kind": "explode", "step_ids": [1]}]}',
        '{"faults": [{"kind": "drop"}]}',
        '{"faults": [{"kind": "drop", "probability": 2}]}',
    ],
)
def test_a_malformed_plan_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="RUFUS_FAULTS"):
        FaultPlan.from_environment({faults.VARIABLE: text})


def test_steps_that_hold_a_token_fail_as_if_the_runtime_refused_them() -> None:
    recorder = Recorder(1, 2)
    tokens = iter(([5, 7], [7, 8]))
    recorder.incoming = deque(
        msgspec.structs.replace(step, token_ids=np.array(next(tokens), np.int32))
        for step in recorder.incoming
    )
    answers: list[object] = []
    recorder.reply = answers.append  # type: ignore[assignment]
    channel = FaultyFollowerChannel(recorder, plan(kind="fail", token_ids=(8,), max_count=0))
    for step_id in (1, 2):
        channel.receive(timeout_s=0.0)
        channel.reply(reply(step_id))
    first, second = answers
    assert isinstance(first, StepReply)
    assert isinstance(second, StepFailed)
    assert second.refused
