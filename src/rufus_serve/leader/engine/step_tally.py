"""`StepTally`: counts every step for the metrics; a few additions a step."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from rufus_serve.leader.engine.step_trace import StepTrace
from rufus_serve.leader.step_counts import Durations, Filled, StepCounts
from rufus_serve.protocol.messages import Phase, RuntimeInfo, StepReply, StepRequest


class StepTally:
    """Written by the step thread; `report` may be called on any."""

    def __init__(self, trace: StepTrace) -> None:
        self._trace = trace
        self._counts = StepCounts()
        self._buckets: dict[Phase, tuple[int, ...]] = {}

    def know(self, info: RuntimeInfo) -> None:
        """What followers compile, before the first step."""
        self._buckets = {
            Phase.PREFILL: info.prefill_buckets,
            Phase.DECODE: info.decode_batch_buckets,
        }

    def step(self, request: StepRequest, replies: Sequence[StepReply], seconds: float) -> None:
        """One step was answered, `seconds` after it was sent."""
        counts, phase = self._counts, request.phase
        counts.steps.setdefault(phase.value, Durations()).add(seconds)
        size = request.num_new_tokens
        filled = counts.filled.setdefault(phase.value, Filled())
        filled.used += size
        filled.computed += _bucket(self._buckets.get(phase, ()), size)
        counts.sent_bytes += _array_bytes(request)
        counts.received_bytes += sum(map(_array_bytes, replies))

    def fetched(self, num_rows: int) -> None:
        """So many rows were asked for in full."""
        self._counts.rows_in_full += num_rows

    def report(self) -> dict[str, Any]:
        """The counts as of now, as plain data."""
        self._counts.parts_s = self._trace.spent_s()
        counts: dict[str, Any] = msgspec.to_builtins(self._counts)
        return counts


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
