"""`Status` as probes and people see it."""

import time
from collections.abc import Iterator, Sequence

from rufus_serve.cluster.base import ClusterHealth
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status
from rufus_serve.protocol.runtime_info import ArtifactUse
from rufus_serve.supervisor.engine_watch import EngineWatch
from rufus_serve.supervisor.group_events import GroupPhase
from rufus_serve.supervisor.group_state import GroupState

_BEST_FIRST = (
    "ready", "draining", "drained", "recovering", "starting", "failed", "stopped",
)  # fmt: skip


def group_status(
    state: GroupState, engine: EngineWatch, *, number: int, engine_silent_s: float, outside: str
) -> GroupStatus:
    """One group's status now; an engine that stands still `engine_silent_s` is unhealthy.

    `outside`: the word for a group that is kept out of rotation; empty for one that is not.
    """
    now = time.monotonic()
    is_ready = state.phase is GroupPhase.READY
    ready_since = state.phase_since if is_ready else None
    has_failed = state.phase is GroupPhase.FAILED
    fault = "" if has_failed else engine.fault(now, engine_silent_s, ready_since=ready_since)
    return GroupStatus(
        group=number,
        state=outside if outside and is_ready else state.phase.value,
        epoch=state.epoch,
        healthy=state.healthy(now) and not fault,
        ready=is_ready and not outside and not fault,
        detail=fault or state.failure,
        restarts=state.total_restarts,
        recovery_s=state.recovery_time.last_s,
        recoveries=state.recovery_time.count,
        start_s=state.recovery_time.start_s,
        engine_fault=fault,
    )


def followers_of(
    state: GroupState, engine: EngineWatch, *, number: int
) -> Iterator[FollowerStatus]:
    """One group's followers, by rank."""
    now = time.monotonic()
    for member in state.by_rank().values():
        yield FollowerStatus(
            group=number,
            node_rank=member.node_rank,
            host=member.host,
            pid=member.pid,
            phase=member.phase.value,
            phase_s=now - member.since,
            load_count=member.load_count,
            restarts=state.restarts_of_rank[member.node_rank],
            step_s=engine.lag.step_s.get(member.node_rank, 0.0),
            kernels=member.info.kernels if member.info else "",
            silent_s=now - member.heard,
            load_s=member.info.load_s if member.info else 0.0,
            warm_up_s=member.warm_up_s,
            stale_steps=member.stale_steps,
            artifacts=member.info.artifacts if member.info else ArtifactUse(),
        )


def status_of(
    groups: Sequence[GroupStatus],
    followers: Sequence[FollowerStatus],
    *,
    draining: bool,
    serving: bool,
    cluster: ClusterHealth,
) -> Status:
    """The server's status: it serves as long as one of its groups does."""
    best = min((group.state for group in groups), key=_BEST_FIRST.index)
    return Status(
        state="draining" if draining else best,
        epoch=max(group.epoch for group in groups),
        healthy=any(group.healthy for group in groups),
        ready=any(group.ready for group in groups) and serving and not draining,
        detail=_detail(groups),
        restarts=sum(group.restarts for group in groups),
        recovery_s=max(group.recovery_s for group in groups),
        cluster_up=cluster.up,
        cluster_restarts=cluster.restarts,
        cluster_detail=cluster.detail,
        followers=tuple(followers),
        groups=tuple(groups),
    )


def _detail(groups: Sequence[GroupStatus]) -> str:
    if len(groups) == 1:
        return groups[0].detail
    out = (group for group in groups if not group.ready)
    return "; ".join(f"group {each.group} is out: {each.detail or each.state}" for each in out)
