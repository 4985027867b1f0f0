"""Steps on the wire: sent to all followers, answered by all, or the group is lost."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rufus_serve.channel.base import FollowerLost, LeaderChannel
from rufus_serve.errors import HandshakeRefused
from rufus_serve.leader.engine.epoch_gate import EpochGate
from rufus_serve.leader.engine.step_builder import (
    LogitsOf,
    PlannedStep,
    Row,
    StepBuilder,
    Want,
    up_to_date,
)
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

    names: tuple[str, ...]
    """Of the rows that the step computed."""
    reason: str


@dataclass
class Flight:
    """All steps that a batch of rows takes: planned, sent, and answered or lost."""

    rows: Mapping[str, Row]
    epoch: int
    steps: list[PlannedStep]
    sent: list[float] = field(default_factory=list)
    """When each step was sent, monotonic seconds."""
    is_lost: bool = False
    refusal: Refusal | None = None
    """Why it was lost, if a runtime refused one of its steps."""


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
        self._epoch = -1
        """Of the connections."""
        self._next_step_id = 0
        self.pace = progress.pace
        self.trace, self.tally = progress.trace, progress.tally
        self._answered: list[tuple[Flight, PlannedStep, Answered]] = []

    def connect(self, ready: GroupReady) -> bool:
        """Shake hands with the followers of an epoch; steps may run then."""
        self._epoch = ready.epoch
        self._progress.forget()
        try:
            self._channel.connect(ready.epoch, ready.endpoints, deadline_s=_HANDSHAKE_S)
        except (FollowerLost, HandshakeRefused) as error:
            self._lose(ready.epoch, str(error))
            return False
        self._next_step_id = 0
        return self._gate.open(ready.epoch)

    def plan(self, rows: Mapping[str, Row], epoch: int) -> Flight:
        """The steps that `rows`, by their requests, take; nothing is sent yet."""
        steps = self._builder.build(
            list(rows.values()), epoch=epoch, first_step_id=self._next_step_id
        )
        return Flight(rows, epoch, steps)

    def send(self, flight: Flight) -> None:
        """Send what was planned to every follower."""
        self._next_step_id += len(flight.steps)
        try:
            flight.sent = [self._send(step.request) for step in flight.steps]
        except FollowerLost as gone:
            self._lose_flight(flight, gone)

    def send_ahead(self, flight: Flight, wants: Sequence[Want]) -> None:
        """Send decodes that were planned before the tokens of their rows were known.

        `wants`: of each row, by now.
        """
        if flight.steps[0].request.step_id != self._next_step_id:
            # Rows in full were asked for since, which took numbers.
            flight.steps = self.plan(flight.rows, flight.epoch).steps
        rows = list(flight.rows.values())
        flight.steps = [up_to_date(step, rows, wants) for step in flight.steps]
        self.send(flight)

    def gather(self, flight: Flight) -> list[PlannedReply] | None:
        """The answers to all steps of what was sent; None if the group was lost meanwhile."""
        if flight.is_lost or not flight.sent or flight.epoch != self._epoch:
            return None
        try:
            return [
                (step, self._gather(step, flight, sent))
                for step, sent in zip(flight.steps, flight.sent, strict=True)
            ]
        except FollowerLost as gone:
            self._lose_flight(flight, gone)
            return None

    def book(self) -> None:
        """Count and learn from what was answered; the next step need not wait for that."""
        answered, self._answered = self._answered, []
        for flight, step, each in answered:
            self._deadline.observe(each.request, each.received - each.awaited)
            self.trace.step(each.replies, sent=each.sent, received=each.received)
            self.tally.step(each._replace(names=_names(flight, step)))
            self.pace.observe(each.replies)
        self.tally.saw_stale(self._channel.num_stale)

    def look_up(
        self, answers: Sequence[PlannedReply], wanted: Collection[LogitsOf]
    ) -> dict[LogitsOf, Array] | None:
        """[V] logits of what is `wanted` of `answers`; None if the group is lost.

        Only until the next `send`.
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

    def _gather(self, step: PlannedStep, flight: Flight, sent: float) -> StepReply:
        request = step.request
        awaited = time.monotonic()
        deadline_s = self._deadline.seconds_for(request)
        with self.trace.span("wait"):
            replies = self._channel.gather(request.step_id, deadline_s=deadline_s)
        received = time.monotonic()
        self._progress.end(request.step_id)
        answered = Answered(request, replies, sent, awaited, received)
        self._answered.append((flight, step, answered))
        return replies[0]

    def _lose_flight(self, flight: Flight, gone: FollowerLost) -> None:
        flight.is_lost = True
        for step in flight.steps:
            if step.request.step_id == gone.refused_step:
                flight.refusal = Refusal(_names(flight, step), str(gone))
        self._lose(flight.epoch, str(gone))

    def _lose(self, epoch: int, reason: str) -> None:
        self._progress.forget()
        # The supervisor need not hear of an epoch that it ended itself.
        if self._gate.shut(epoch):
            _log.warning("epoch %d is lost: %s", epoch, reason)
            self._tell_lost(epoch, reason)


def _names(flight: Flight, step: PlannedStep) -> tuple[str, ...]:
    """Of the requests whose rows a step computes."""
    names = list(flight.rows)
    return tuple(names[row] for row in step.members)
