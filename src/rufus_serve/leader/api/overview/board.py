"""`Board`: puts an `Overview` together from what the API process knows anyway."""

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence

from rufus_serve import __version__
from rufus_serve.leader.api.overview.readings import (
    SPREAD_S,
    Readings,
    Sample,
    growth_per,
)
from rufus_serve.leader.api.overview.timeline import Timeline
from rufus_serve.leader.api.overview.views import GroupView, Load, Moment, Overview
from rufus_serve.leader.api.status_metrics import skew
from rufus_serve.leader.step_counts import StepCounts
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status

_FRESH_S = 0.9
"""A sample that is younger serves all who watch."""


class Board:
    """Event loop only. Nothing is sampled while nobody watches."""

    def __init__(
        self,
        model: str,
        *,
        num_open: Callable[[], int],
        counts: Callable[[], dict[int, StepCounts]],
        read: Callable[[float], Sample] = Sample.read,
    ) -> None:
        """`counts`: what each group's engine counted so far."""
        self._model, self._num_open, self._counts, self._read = model, num_open, counts, read
        self._timeline = Timeline()
        self._readings = Readings()
        self._engines: dict[int, deque[tuple[float, StepCounts]]] = {}
        self._status: Status | None = None

    def take(self, status: Status) -> list[Moment]:
        """What the supervisor says, about once a second; what happened since."""
        self._status = status
        return self._timeline.take(status)

    def moved(self, group: int, num_requests: int) -> Moment:
        """A group came out of rotation with so many requests."""
        plural = "s" if num_requests > 1 else ""
        what = f"out of rotation, its {num_requests} request{plural} went to other groups"
        return self._timeline.note(group, what)

    def overview(self) -> Overview | None:
        """The server now; None before the supervisor said anything."""
        status = self._status
        if status is None:
            return None
        self._sample(time.monotonic())
        return Overview(
            at=time.time(),
            model=self._model,
            version=__version__,
            state=status.state,
            healthy=status.healthy,
            ready=status.ready,
            detail=status.detail,
            cluster_up=status.cluster_up,
            cluster_detail=status.cluster_detail,
            load=self._load(),
            groups=tuple(self._group(group, status.followers) for group in status.groups),
            followers=status.followers,
            timeline=self._timeline.moments(),
        )

    def _sample(self, now: float) -> None:
        samples = self._readings.samples
        if samples and now - samples[-1].at < _FRESH_S:
            return
        self._readings.take(self._read(now))
        for group, counts in self._counts().items():
            past = self._engines.setdefault(group, deque())
            if past and counts.sent_bytes < past[-1][1].sent_bytes:
                past.clear()  # another engine, which counts anew
            past.append((now, copy.deepcopy(counts)))
            while len(past) > 2 and past[1][0] <= now - SPREAD_S:
                past.popleft()

    def _load(self) -> Load:
        readings = self._readings
        return Load(
            open_sequences=self._num_open(),
            output_tokens_per_s=readings.rate("generation_tokens"),
            prompt_tokens_per_s=readings.rate("prompt_tokens"),
            ttft_ms=readings.spread("ttft"),
            tpot_ms=readings.spread("tpot"),
            itl_ms=readings.spread("itl"),
        )

    def _group(self, group: GroupStatus, followers: Sequence[FollowerStatus]) -> GroupView:
        readings, engine = self._readings, str(group.group)
        step_ms, parts_ms, padding = self._steps(group.group)
        return GroupView(
            group=group.group,
            state=group.state,
            epoch=group.epoch,
            ready=group.ready,
            restarts=group.restarts,
            recovery_s=group.recovery_s,
            detail=group.detail,
            running=int(readings.gauge("num_requests_running", engine)),
            waiting=int(readings.gauge("num_requests_waiting", engine)),
            kv_usage=readings.gauge("kv_cache_usage_perc", engine),
            prefix_hit_rate=readings.prefix_hit_rate(engine),
            step_ms=step_ms,
            parts_ms=parts_ms,
            padding=padding,
            skew_ms=1e3 * skew([each.step_s for each in followers if each.group == group.group]),
        )

    def _steps(self, group: int) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Mean step time by phase, mean time by part, and share of padding by phase."""
        past = self._engines.get(group)
        if not past:
            return {}, {}, {}
        new = past[-1][1]
        old = past[0][1] if len(past) > 1 else StepCounts()
        counts = {phase: sum(times.buckets) for phase, times in new.steps.items()}
        before = {phase: sum(times.buckets) for phase, times in old.steps.items()}
        done = {phase: count - before.get(phase, 0) for phase, count in counts.items()}
        sums = {phase: times.sum_s for phase, times in old.steps.items()}
        step_ms = {
            phase: 1e3 * (new.steps[phase].sum_s - sums.get(phase, 0.0)) / count
            for phase, count in done.items()
            if count > 0
        }
        total = sum(done.values())
        parts_ms = growth_per(total / 1e3, new.parts_s, old.parts_s) if total > 0 else {}
        padding = {
            phase: 1 - each.used / each.computed
            for phase, each in new.filled.items()
            if each.computed
        }
        return step_ms, parts_ms, padding
