"""`StepTally`: counts every step for the metrics, and keeps one now and then for traces."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from rufus_serve.leader.engine.step_trace import StepTrace
from rufus_serve.leader.step_counts import (
    Durations,
    Filled,
    FollowerPart,
    StepCounts,
    StepSample,
)
from rufus_serve.protocol.messages import Phase, RuntimeInfo, StepReply, StepRequest


class Answered(NamedTuple):
    """A step and all replies to it; monotonic seconds."""

    request: StepRequest
    replies: Sequence[StepReply]
    sent: float
    awaited: float
    """Since when nothing was left to do but to wait for the replies."""
    received: float
    names: tuple[str, ...] = ()
    """Of the requests whose rows it computed."""


class StepTally:
    """Written by the step thread; `report` may be called on any."""

    def __init__(self, trace: StepTrace) -> None:
        self._trace = trace
        self._counts = StepCounts()
        self._buckets: dict[Phase, tuple[int, ...]] = {}
        self._newest: dict[Phase, Answered] = {}

    def know(self, info: RuntimeInfo) -> None:
        """What followers compile, before the first step."""
        self._buckets = {
            Phase.PREFILL: info.prefill_buckets,
            Phase.DECODE: info.decode_batch_buckets,
        }

    def step(self, step: Answered) -> None:
        """One step was answered."""
        request = step.request
        counts, phase = self._counts, request.phase
        counts.steps.setdefault(phase.value, Durations()).add(step.received - step.sent)
        size = request.num_new_tokens
        filled = counts.filled.setdefault(phase.value, Filled())
        filled.used += size
        filled.computed += _bucket(self._buckets.get(phase, ()), size)
        counts.sent_bytes += _array_bytes(request)
        counts.received_bytes += sum(map(_array_bytes, step.replies))
        self._newest[phase] = step

    def fetched(self, num_rows: int) -> None:
        """So many rows were asked for in full."""
        self._counts.rows_in_full += num_rows

    def saw_stale(self, num_replies: int) -> None:
        """So many answers came too late, since the engine began."""
        self._counts.stale_replies = num_replies

    def report(self) -> dict[str, Any]:
        """The counts as of now, as plain data."""
        newest, self._newest = self._newest, {}
        self._counts.parts_s = self._trace.spent_s()
        self._counts.samples = [_sample(each) for each in newest.values()]
        counts: dict[str, Any] = msgspec.to_builtins(self._counts)
        return counts


def _sample(step: Answered) -> StepSample:
    return StepSample(
        step_id=step.request.step_id,
        epoch=step.request.epoch,
        phase=step.request.phase.value,
        sent=step.sent,
        received=step.received,
        requests=step.names,
        followers=tuple(
            FollowerPart(
                reply.node_rank,
                # As if both ways had taken the same, which needs no clock of the follower's.
                step.sent + max(0.0, step.received - step.sent - reply.compute_s) / 2,
                reply.compute_s,
                reply.wait_s,
            )
            for reply in step.replies
        ),
    )


def _bucket(sizes: Sequence[int], size: int) -> int:
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else size


def _array_bytes(message: msgspec.Struct | None) -> int:
    """Of a message and what it holds."""
    total = 0
    for name in message.__struct_fields__ if message is not None else ():
        value = getattr(message, name)
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, msgspec.Struct):
            total += _array_bytes(value)
    return total
