"""`StepCounts`: what an engine has counted since it began; the API process exports it."""

from bisect import bisect_left

import msgspec

STEP_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the buckets that steps are counted in; one more is without bound."""


class Durations(msgspec.Struct):
    """How long something took, as a histogram."""

    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_BOUNDS_S) + 1))
    """Number in each, not cumulative."""
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(STEP_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Filled(msgspec.Struct):
    """How full compiled shapes were."""

    used: int = 0
    """Rows of decodes, new tokens of prefills, that requests asked for."""
    computed: int = 0
    """The same with what pads them to the bucket."""


class FollowerPart(msgspec.Struct, frozen=True):
    """One follower's part of a step, on the leader's clock."""

    node_rank: int
    began: float
    compute_s: float
    wait_s: float
    """Of `compute_s`, for peers."""


class StepSample(msgspec.Struct, frozen=True, kw_only=True):
    """One step, for traces of the requests in it; monotonic seconds of the leader's host."""

    step_id: int
    epoch: int
    phase: str
    sent: float
    received: float
    requests: tuple[str, ...]
    """Those it computed, as the engine calls them."""
    followers: tuple[FollowerPart, ...]


class StepCounts(msgspec.Struct):
    """Counters; they begin at zero with each engine process."""

    steps: dict[str, Durations] = msgspec.field(default_factory=dict)
    """By phase: from sending a step to having all replies."""
    filled: dict[str, Filled] = msgspec.field(default_factory=dict)
    """By phase."""
    parts_s: dict[str, float] = msgspec.field(default_factory=dict)
    """Seconds spent by part of a step on the leader; `wait` is for the followers."""
    sent_bytes: int = 0
    """Of steps' arrays, to each follower."""
    received_bytes: int = 0
    """Of replies' arrays, from all followers."""
    rows_in_full: int = 0
    """Rows whose candidates did not decide the token, so that all logits were fetched."""
    stale_replies: int = 0
    """Followers' answers that came too late to be of use."""
    samples: list[StepSample] = msgspec.field(default_factory=list)
    """The newest step of each phase since the last report."""
