"""Steps on the wire: sent to all followers, answered by all, or the group is lost."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rufus_serve.channel.base import FollowerLost, LeaderChannel
from rufus_serve.errors import HandshakeRefused
from rufus_serve.leader.engine.epoch_gate import EpochGate
from rufus_serve.leader.engine.step_builder import LogitsOf, PlannedStep, Row, StepBuilder
from rufus_serve.leader.engine.step_counter import StepCounter
from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.leader.engine.step_tally import Answered
from rufus_serve.protocol.messages import Array, GroupReady, LogitsRequest, StepOrder, StepReply

_log = logging.getLogger(__name__)
_HANDSHAKE_S = 15.0

PlannedReply = tuple[PlannedStep, StepReply]


@dataclass(frozen=True)
class Refusal:
    """A step that a follower's runtime refused, upon which its epoch ended."""

    rows: tuple[int, ...]
    """Indexes into the rows given to `GroupSteps.run`: those that the step computed."""
    reason: str


TellLost = Callable[[int, str], None]
"""Called with (epoch, reason) when a follower is found lost; any thread."""


class GroupSteps:
    """Sends planned steps to the followers and gathers replies; step thread only."""

    def __init__(
        self,
        channel: LeaderChannel,
        gate: EpochGate,
        *,
        builder: StepBuilder,
        progress: StepCounter,
        deadline: StepDeadline,
        tell_lost: TellLost,
    ) -> None:
        self._channel = channel
        self._gate = gate
        self._builder = builder
        self._progress = progress
        self._deadline = deadline
        self._tell_lost = tell_lost
        self._next_step_id = 0
        self.pace = progress.pace
        self.trace, self.tally = progress.trace, progress.tally
        self.refusal: Refusal | None = None
        """Why the last `run` lost its group, if a runtime refused one of its steps."""

    def connect(self, ready: GroupReady) -> bool:
        """Shake hands with the followers of an epoch; steps may run then."""
        try:
            self._channel.connect(ready.epoch, ready.endpoints, deadline_s=_HANDSHAKE_S)
        except (FollowerLost, HandshakeRefused) as error:
            self._lose(ready.epoch, str(error))
            return False
        self._next_step_id = 0
        return self._gate.open(ready.epoch)

    def run(self, rows: Sequence[Row], epoch: int) -> list[PlannedReply] | None:
        """The answers to all steps that `rows` take; None if the group was lost meanwhile."""
        with self.trace.span("build"):
            planned = self._builder.build(rows, epoch=epoch, first_step_id=self._next_step_id)
        self._next_step_id += len(planned)
        self.refusal = None
        try:
            with self.trace.span("send"):
                sent = [self._send(step.request) for step in planned]
            return [(step, self._gather(step, at)) for step, at in zip(planned, sent, strict=True)]
        except FollowerLost as gone:
            refused = [s.members for s in planned if s.request.step_id == gone.refused_step]
            self.refusal = Refusal(refused[0], str(gone)) if refused else None
            self._lose(epoch, str(gone))
            return None

    def look_up(
        self, answers: Sequence[PlannedReply], wanted: Collection[LogitsOf]
    ) -> dict[LogitsOf, Array] | None:
        """[V] logits of what is `wanted` of `answers`; None if the group is lost.

        Only until the next `run`.
        """
        found: dict[LogitsOf, Array] = {}
        for step, _ in answers:
            places = [place for place, row in enumerate(step.rows) if row in wanted]
            if places:
                self.tally.fetched(len(places))
                logits = self._ask(step, np.array(places, np.int32))
                if logits is None:
                    return None
                found |= {step.rows[place]: row for place, row in zip(places, logits, strict=True)}
        return found

    def _ask(self, step: PlannedStep, places: Array) -> Array | None:
        request = LogitsRequest(
            step_id=self._next_step_id,
            epoch=step.request.epoch,
            of_step_id=step.request.step_id,
            rows=places,
        )
        self._next_step_id += 1
        try:
            self._send(request)
            deadline_s = self._deadline.seconds_for(step.request)
            (first, *_) = self._channel.gather(request.step_id, deadline_s=deadline_s)
        except FollowerLost as gone:
            self._lose(request.epoch, str(gone))
            return None
        self._progress.end(request.step_id)
        return first.logits

    def _send(self, order: StepOrder) -> float:
        """Send to every follower; when that began."""
        began = time.monotonic()
        self._channel.broadcast(order)
        self._progress.begin(order.step_id)
        return began

    def _gather(self, step: PlannedStep, sent: float) -> StepReply:
        request = step.request
        started = time.monotonic()
        deadline_s = self._deadline.seconds_for(request)
        with self.trace.span("wait"):
            replies = self._channel.gather(request.step_id, deadline_s=deadline_s)
        received = time.monotonic()
        self._deadline.observe(request, received - started)
        self.trace.step(replies, sent=sent, received=received)
        self.tally.step(Answered(request, replies, sent, received, step.members))
        self.tally.saw_stale(self._channel.num_stale)
        self._progress.end(request.step_id)
        self.pace.observe(replies)
        return replies[0]

    def _lose(self, epoch: int, reason: str) -> None:
        self._progress.forget()
        # The supervisor need not hear of an epoch that it ended itself.
        if self._gate.shut(epoch):
            _log.warning("epoch %d is lost: %s", epoch, reason)
            self._tell_lost(epoch, reason)
