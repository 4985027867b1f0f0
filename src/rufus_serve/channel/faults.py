"""Step channels that fail on purpose. For tests only: it makes requests slow and groups fail.

`RUFUS_FAULTS` holds a `FaultPlan` as JSON, for instance

    {"seed": 7, "faults": [{"kind": "drop", "step_ids": [12], "node_rank": 1},
                           {"kind": "delay", "probability": 0.05, "delay_s": 0.2, "max_count": 0}]}
"""

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from rufus_serve.channel.base import FollowerChannel, FollowerLost, LeaderChannel
from rufus_serve.errors import ConfigError
from rufus_serve.protocol.messages import (
    StepEndpoint,
    StepFailed,
    StepOrder,
    StepReply,
    StepRequest,
)

_LOGGER = logging.getLogger(__name__)
VARIABLE = "RUFUS_FAULTS"

Moment = Literal["request", "reply"]
LEADER_RANK = -2


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of failure, and when it happens."""

    kind: Literal["drop", "delay", "duplicate", "disconnect", "fail", "raise"]
    """`fail` makes a follower answer that its runtime failed, `raise` ends its process."""
    at: Moment = "reply"
    """Which way the step is going when it fails."""
    step_ids: tuple[int, ...] = ()
    """Steps that fail."""
    token_ids: tuple[int, ...] = ()
    """A follower's steps that hold one of these tokens fail as well."""
    probability: float = 0.0
    """Chance of any other step to fail."""
    node_rank: int = -1
    """Follower that fails; -1: each, -2: the leader's side."""
    delay_s: float = 0.1
    """How long a `delay` takes; the calling thread sleeps."""
    max_count: int = 1
    """How often it happens in the life of a process; 0: without end."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or self.delay_s < 0 or self.max_count < 0:
            raise ValueError("probability is within 0 and 1, delay_s and max_count not negative")
        if not self.step_ids and not self.token_ids and not self.probability:
            raise ValueError("a fault needs step_ids, token_ids or a probability")


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All faults of a run."""

    seed: int = 0
    faults: tuple[Fault, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "FaultPlan | None":
        """The plan in `RUFUS_FAULTS`; None if it is unset or empty.

        Raises:
            ConfigError: it is not a plan.
        """
        text = (os.environ if environment is None else environment).get(VARIABLE, "")
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{VARIABLE} is not a plan of faults: {error}") from error


class InjectedFault(Exception):
    """A fault of kind `raise`."""


class FaultDice:
    """Which faults a step meets; the same for the same seed, node rank and order of steps."""

    def __init__(self, plan: FaultPlan, node_rank: int) -> None:
        self._random = random.Random(f"{plan.seed} {node_rank}")  # noqa: S311 - no secret
        self._left = [
            (fault, [fault.max_count or -1])
            for fault in plan.faults
            if fault.node_rank in (-1, node_rank) and (fault.node_rank, node_rank) != (-1, -2)
        ]

    def roll(self, at: Moment, step_id: int, tokens: Collection[int] = ()) -> list[Fault]:
        """The faults that happen now, to a step of these tokens, in the plan's order."""
        return [
            fault
            for fault, left in self._left
            if fault.at == at and self._hits(fault, step_id, tokens) and self._use(left)
        ]

    def _hits(self, fault: Fault, step_id: int, tokens: Collection[int]) -> bool:
        by_chance = fault.probability > 0 and self._random.random() < fault.probability
        by_token = any(token in fault.token_ids for token in tokens) if fault.token_ids else False
        return by_chance or by_token or step_id in fault.step_ids

    def _use(self, left: list[int]) -> bool:
        if left[0] == 0:
            return False
        left[0] -= 1
        return True


class BreakableFollowerChannel(FollowerChannel, Protocol):
    """What `FaultyFollowerChannel` wraps."""

    def disconnect(self) -> None:
        """Break all connections, as a network failure would."""


def _strike(disconnect: Callable[[], None], faults: Sequence[Fault], step_id: int) -> int:
    """Let faults happen; how many copies of the frame survive: 0, 1 or 2."""
    copies = 1
    for fault in faults:
        match fault.kind:
            case "raise":
                raise InjectedFault(f"{VARIABLE}: {fault.at} of step {step_id}")
            case "delay":
                time.sleep(fault.delay_s)
            case "duplicate":
                copies *= 2
            case "disconnect":
                disconnect()
                copies = 0
            case "drop":
                copies = 0
    return min(copies, 2)


class FaultyFollowerChannel:
    """A `FollowerChannel` that fails by plan."""

    def __init__(self, inner: BreakableFollowerChannel, plan: FaultPlan) -> None:
        self._inner = inner
        self._dice = FaultDice(plan, inner.endpoint.node_rank)
        self._again: StepOrder | None = None
        self._tokens: list[int] = []
        """Of the step received last, which is the one that is answered next."""

    @property
    def num_stale(self) -> int:
        """See `FollowerChannel.num_stale`."""
        return self._inner.num_stale

    @property
    def endpoint(self) -> StepEndpoint:
        """See `FollowerChannel.endpoint`."""
        return self._inner.endpoint

    def begin(self, epoch: int) -> None:
        """See `FollowerChannel.begin`."""
        self._again = None
        self._inner.begin(epoch)

    def receive(self, *, timeout_s: float) -> StepOrder | None:
        """See `FollowerChannel.receive`; a step that is dropped or cut off returns None."""
        again, self._again = self._again, None
        if again is not None:
            return again
        step = self._inner.receive(timeout_s=timeout_s)
        if step is None:
            return None
        self._tokens = step.token_ids.tolist() if isinstance(step, StepRequest) else []
        faults = self._dice.roll("request", step.step_id, self._tokens)
        copies = _strike(self._inner.disconnect, faults, step.step_id)
        self._again = step if copies == 2 else None
        return step if copies else None

    def reply(self, message: StepReply | StepFailed) -> None:
        """See `FollowerChannel.reply`."""
        faults = self._dice.roll("reply", message.step_id, self._tokens)
        if any(fault.kind == "fail" for fault in faults):
            message = StepFailed(
                step_id=message.step_id,
                epoch=message.epoch,
                node_rank=message.node_rank,
                error=f"{VARIABLE}: step {message.step_id}",
                refused=True,
            )
        for _ in range(_strike(self._inner.disconnect, faults, message.step_id)):
            self._inner.reply(message)

    def close(self) -> None:
        """See `FollowerChannel.close`."""
        self._inner.close()


class FaultyLeaderChannel:
    """A `LeaderChannel` that fails by plan (faults of node rank -2)."""

    def __init__(self, inner: LeaderChannel, plan: FaultPlan) -> None:
        self._inner = inner
        self._dice = FaultDice(plan, LEADER_RANK)
        self._epoch = -1

    @property
    def num_stale(self) -> int:
        """See `LeaderChannel.num_stale`."""
        return self._inner.num_stale

    def connect(self, epoch: int, endpoints: Sequence[StepEndpoint], *, deadline_s: float) -> None:
        """See `LeaderChannel.connect`."""
        self._epoch = epoch
        self._inner.connect(epoch, endpoints, deadline_s=deadline_s)

    def broadcast(self, step: StepOrder) -> None:
        """See `LeaderChannel.broadcast`."""
        faults = self._dice.roll("request", step.step_id)
        for _ in range(_strike(self._break, faults, step.step_id)):
            self._inner.broadcast(step)

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        """See `LeaderChannel.gather`; dropped replies are waited for all the same."""
        faults = self._dice.roll("reply", step_id)
        copies = _strike(self._break, faults, step_id)
        replies = self._inner.gather(step_id, deadline_s=deadline_s)
        if not copies:
            raise FollowerLost(0, f"silent on step {step_id} ({VARIABLE})")
        return replies

    def abandon(self, epoch: int, reason: str) -> None:
        """See `LeaderChannel.abandon`."""
        self._inner.abandon(epoch, reason)

    def close(self) -> None:
        """See `LeaderChannel.close`."""
        self._inner.close()

    def _break(self) -> None:
        self._inner.abandon(self._epoch, f"connections broken ({VARIABLE})")


def _plan_said() -> FaultPlan | None:
    plan = FaultPlan.from_environment()
    if plan is not None:
        _LOGGER.warning("%s is set: steps fail on purpose; unset it to serve", VARIABLE)
    return plan


def with_follower_faults(channel: BreakableFollowerChannel) -> FollowerChannel:
    """`channel`, failing as `RUFUS_FAULTS` says; `channel` itself if it is unset."""
    plan = _plan_said()
    return channel if plan is None else FaultyFollowerChannel(channel, plan)


def with_leader_faults(channel: LeaderChannel) -> LeaderChannel:
    """`channel`, failing as `RUFUS_FAULTS` says; `channel` itself if it is unset."""
    plan = _plan_said()
    return channel if plan is None else FaultyLeaderChannel(channel, plan)
