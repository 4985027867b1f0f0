"""What the supervisor says of groups and followers, for `/metrics`."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from rufus_serve.metrics import Family, Values, family, histogram
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status

STATES = ("starting", "ready", "recovering", "draining", "drained", "failed", "stopped")
RECOVERY_BOUNDS_S = (0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class StatusMetrics:
    """The last status as metrics, and what came of all before."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._recoveries: dict[int, tuple[list[int], float]] = {}
        """Number in each bucket, and sum, by group."""
        self._seen: dict[int, int] = {}

    def take(self, status: Status) -> None:
        """What the supervisor says now."""
        self._status = status
        for group in status.groups:
            empty = [0] * (len(RECOVERY_BOUNDS_S) + 1), 0.0
            buckets, total = self._recoveries.setdefault(group.group, empty)
            # Of several since the last status, only the last one's length is told.
            new = max(0, group.recoveries - self._seen.get(group.group, 0))
            self._seen[group.group] = group.recoveries
            buckets[bisect_left(RECOVERY_BOUNDS_S, group.recovery_s)] += new
            self._recoveries[group.group] = buckets, total + new * group.recovery_s

    def families(self) -> Iterator[Family]:
        """All of them, also while nothing is known yet."""
        status = self._status
        groups = status.groups if status else ()
        followers = status.followers if status else ()
        yield family("rufus_group_state", _states(status) if status else {})
        for name, read in _GROUP.items():
            yield family(name, {(str(each.group),): read(each) for each in groups})
        yield histogram(
            "rufus_recovery_seconds",
            RECOVERY_BOUNDS_S,
            [((str(g),), buckets, total) for g, (buckets, total) in self._recoveries.items()],
        )
        for name, of in _FOLLOWER.items():
            yield family(name, {_where(each): of(each) for each in followers})
        for name, name_of in _ARTIFACTS.items():
            yield family(
                name,
                {
                    (*_where(each), how): getattr(each.artifacts, f"{how}_{name_of}")
                    for each in followers
                    for how in ("kept", "fetched")
                },
            )
        yield family("rufus_follower_skew_seconds", _skews(groups, followers))
        yield family("rufus_cluster_up", _whole(status, lambda each: each.cluster_up))
        yield family(
            "rufus_cluster_restarts_total", _whole(status, lambda each: each.cluster_restarts)
        )


_GROUP: dict[str, Callable[[GroupStatus], float]] = {
    "rufus_group_epoch": lambda group: group.epoch,
    "rufus_group_start_seconds": lambda group: group.start_s,
    "rufus_follower_restarts_total": lambda group: group.restarts,
}
_FOLLOWER: dict[str, Callable[[FollowerStatus], float]] = {
    "rufus_follower_step_seconds": lambda follower: follower.step_s,
    "rufus_follower_heartbeat_age_seconds": lambda follower: follower.silent_s,
    "rufus_follower_weight_loads": lambda follower: follower.load_count,
    "rufus_follower_load_seconds": lambda follower: follower.load_s,
    "rufus_follower_compile_seconds": lambda follower: follower.artifacts.compile_s,
    "rufus_follower_warm_up_seconds": lambda follower: follower.warm_up_s,
    "rufus_follower_stale_steps_total": lambda follower: follower.stale_steps,
}
_ARTIFACTS = {
    "rufus_follower_artifact_files": "files",
    "rufus_follower_artifact_bytes": "bytes",
}


def _whole(status: Status | None, read: Callable[[Status], float]) -> Values:
    return {(): float(read(status))} if status else {}


def _states(status: Status) -> Values:
    # A group that serves while the server drains does as well.
    drains = status.state == "draining"
    return {
        (str(group.group), state): float(state == ("draining" if drains else group.state))
        for group in status.groups
        for state in STATES
    }


def _where(follower: FollowerStatus) -> tuple[str, ...]:
    return str(follower.group), str(follower.node_rank), follower.host


def _skews(groups: Sequence[GroupStatus], followers: Sequence[FollowerStatus]) -> Values:
    return {
        (str(group.group),): skew([f.step_s for f in followers if f.group == group.group])
        for group in groups
    }


def skew(step_s: Sequence[float]) -> float:
    """The largest less the smallest of those that are known, in seconds per step."""
    known = [seconds for seconds in step_s if seconds > 0]
    return max(known) - min(known) if known else 0.0
