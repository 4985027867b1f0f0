from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from rufus_serve.channel.base import NOBODY, FollowerLost
from rufus_serve.errors import HandshakeRefused
from rufus_serve.leader.engine.group_steps import GroupSteps, PlannedReply
from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_builder import LogitsOf, Row, StepBuilder, Want
from rufus_serve.leader.engine.step_counter import StepCounter
from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.protocol.messages import (
    GroupReady,
    LogitsRequest,
    RuntimeInfo,
    StepEndpoint,
    StepOrder,
    StepReply,
    StepRequest,
)

INFO = RuntimeInfo(
    model_type="llama",
    num_layers=1,
    num_kv_heads=1,
    head_size=8,
    vocab_size=9,
    dtype="float32",
    block_size=4,
    num_blocks=9,
    max_model_len=32,
    prefill_buckets=(4,),
    decode_batch_buckets=(2,),
    context_buckets=(32,),
)


class Channel:
    """Answers every step at once, until told to break."""

    def __init__(self) -> None:
        self.steps: list[StepOrder] = []
        self.error: Exception | None = None
        self.num_stale = 0

    def connect(self, epoch: int, endpoints: Sequence[StepEndpoint], *, deadline_s: float) -> None:
        if self.error:
            raise self.error

    def broadcast(self, step: StepOrder) -> None:
        self.steps.append(step)

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        if self.error:
            raise self.error
        last = self.steps[-1]
        logits = None
        if isinstance(last, LogitsRequest):
            logits = np.array([[last.of_step_id, row] for row in last.rows], np.float32)
        return [
            StepReply(
                step_id=step_id, epoch=last.epoch, node_rank=rank, compute_s=0.0, logits=logits
            )
            for rank in (0, 1)
        ]

    def abandon(self, epoch: int, reason: str) -> None:
        self.error = FollowerLost(NOBODY, reason)

    def close(self) -> None:
        pass


class Group:
    def __init__(self) -> None:
        self.channel, self.engine = Channel(), Engine()
        self.progress = StepCounter(self.engine)
        self.lost: list[tuple[int, str]] = []
        self.steps = GroupSteps(
            self.channel,
            self.engine.gate,
            builder=StepBuilder.for_runtime(INFO),
            progress=self.progress,
            deadline=StepDeadline(1.0),
            tell_lost=lambda *event: self.lost.append(event),
        )

    def run(self, rows: list[Row], epoch: int) -> list[PlannedReply] | None:
        self.flight = self.steps.plan({f"r{place}": row for place, row in enumerate(rows)}, epoch)
        self.steps.send(self.flight)
        return self.steps.gather(self.flight)

    def connect(self, epoch: int) -> bool:
        return self.steps.connect(GroupReady(epoch=epoch, endpoints=(), info=INFO))


def prompt(length: int) -> Row:
    return Row(np.arange(length, dtype=np.int32), 0, length, [1, 2, 3, 4], True)


def test_all_steps_are_sent_before_the_first_answer_is_awaited() -> None:
    group = Group()
    assert group.connect(1)
    answers = group.run([prompt(10)], 1)
    assert answers is not None
    assert [step.step_id for step in group.channel.steps] == [0, 1, 2]
    assert [reply.node_rank for _, reply in answers] == [0, 0, 0]


def test_step_ids_go_on_within_an_epoch_and_start_again_with_the_next() -> None:
    group = Group()
    group.connect(1)
    group.run([prompt(4)], 1)
    group.run([prompt(4)], 1)
    group.connect(2)
    group.run([prompt(4)], 2)
    assert [(step.epoch, step.step_id) for step in group.channel.steps] == [(1, 0), (1, 1), (2, 0)]


def test_a_lost_follower_shuts_the_epoch_and_is_reported_instead_of_raised() -> None:
    group = Group()
    group.connect(1)
    group.channel.error = FollowerLost(1, "connection closed")
    assert group.run([prompt(4)], 1) is None
    assert group.engine.gate.epoch is None
    assert group.lost == [(1, "follower 1: connection closed")]
    assert group.progress.report().steps_in_flight == 0


@pytest.mark.parametrize("error", [FollowerLost(0, "silent"), HandshakeRefused("another key")])
def test_a_failed_handshake_leaves_the_gate_shut_and_is_reported(error: Exception) -> None:
    group = Group()
    group.engine.gate.announce(1)
    group.channel.error = error
    assert not group.connect(1)
    assert group.engine.gate.epoch is None
    assert [event[0] for event in group.lost] == [1]


def test_a_refused_step_names_its_rows_and_the_runtimes_words() -> None:
    group = Group()
    group.connect(1)
    group.channel.error = FollowerLost(1, "step 1 failed: no such bucket", refused_step=1)
    assert group.run([prompt(4), prompt(4)], 1) is None
    refusal = group.flight.refusal
    assert refusal is not None
    assert refusal.names == ("r1",)
    assert "no such bucket" in refusal.reason
    group.connect(2)
    group.channel.error = FollowerLost(1, "connection closed")
    assert group.run([prompt(4)], 2) is None
    assert group.flight.refusal is None


def test_an_epoch_that_the_supervisor_ended_is_not_reported_to_it_again() -> None:
    group = Group()
    group.connect(1)
    group.engine.gate.shut(1)
    group.channel.abandon(1, "follower 1 died")
    assert group.run([prompt(4)], 1) is None
    assert group.lost == []


def test_progress_counts_what_was_answered() -> None:
    group = Group()
    group.connect(3)
    group.run([prompt(8)], 3)
    report = group.progress.report()
    assert (report.steps_done, report.steps_in_flight) == (2, 0)


def test_rows_in_full_are_asked_of_the_steps_that_answered_them() -> None:
    group = Group()
    group.connect(1)
    token = Row(np.arange(9, dtype=np.int32), 4, 1, [1, 2], False)
    answers = group.run([token, prompt(10), token, token], 1)
    found = group.steps.look_up(answers, {LogitsOf(1), LogitsOf(2), LogitsOf(3)})
    # Two rows a decode: steps 0 and 1; the prompt's last segment is step 4.
    assert {each.row: logits.tolist() for each, logits in found.items()} == {
        1: [4, 0], 2: [0, 1], 3: [1, 0],
    }  # fmt: skip
    assert [order.step_id for order in group.channel.steps] == list(range(8))
    assert group.progress.report().steps_in_flight == 0


def test_a_group_that_is_lost_while_rows_are_asked_for_is_reported() -> None:
    group = Group()
    group.connect(1)
    answers = group.run([prompt(4)], 1)
    group.channel.error = FollowerLost(0, "connection closed")
    assert group.steps.look_up(answers, {LogitsOf(0)}) is None
    assert group.lost == [(1, "follower 0: connection closed")]


def test_steps_planned_ahead_are_sent_with_their_rows_tokens_and_wants_of_then() -> None:
    group = Group()
    group.connect(1)
    tokens = np.arange(9, dtype=np.int32)
    token = Row(tokens, 4, 1, [1, 2], False, want=Want(1))
    answers = group.run([token], 1)
    flight = group.steps.plan({"a": msgspec.structs.replace(token, num_computed=5)}, 1)
    tokens[5] = 77
    # Takes a number between.
    group.steps.look_up(answers, {LogitsOf(0)})
    group.steps.send_ahead(flight, [Want(3)])
    sent = group.channel.steps[-1]
    assert isinstance(sent, StepRequest)
    assert (sent.step_id, sent.token_ids.tolist(), sent.context_lens.tolist()) == (2, [77], [6])
    assert sent.wants is not None
    assert sent.wants.num_candidates.tolist() == [3]
    assert group.steps.gather(flight) is not None


def test_what_was_sent_in_an_epoch_before_is_lost() -> None:
    group = Group()
    group.connect(1)
    flight = group.steps.plan({"a": prompt(4)}, 1)
    assert group.steps.gather(flight) is None
    group.steps.send(flight)
    group.connect(2)
    assert group.steps.gather(flight) is None
    assert group.progress.report().steps_in_flight == 0
