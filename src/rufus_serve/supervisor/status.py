"""`Status` as probes and people see it."""

import time

from rufus_serve.cluster.base import ClusterHealth
from rufus_serve.protocol.messages import FollowerStatus, Status
from rufus_serve.supervisor.group_events import GroupPhase
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.leader_link import LeaderLink


def status_of(
    state: GroupState,
    link: LeaderLink,
    *,
    draining: bool,
    serving: bool,
    engine_silent_s: float,
    cluster: ClusterHealth,
) -> Status:
    """The group's status now; an engine that stands still `engine_silent_s` is unhealthy."""
    now = time.monotonic()
    fault = _fault_of_engine(state, link, now, engine_silent_s)
    ready = state.phase is GroupPhase.READY and serving and not draining and not fault
    return Status(
        state="draining" if draining else state.phase.value,
        epoch=state.epoch,
        healthy=state.healthy(now) and not fault,
        ready=ready,
        detail=fault or state.failure,
        restarts=state.total_restarts,
        recovery_s=state.recovery_time.last_s,
        engine_fault=fault,
        cluster_up=cluster.up,
        cluster_restarts=cluster.restarts,
        cluster_detail=cluster.detail,
        followers=tuple(
            FollowerStatus(
                node_rank=member.node_rank,
                host=member.host,
                pid=member.pid,
                phase=member.phase.value,
                phase_s=now - member.since,
                load_count=member.load_count,
                restarts=state.restarts_of_rank[member.node_rank],
                step_s=link.lag.step_s.get(member.node_rank, 0.0),
                kernels=member.info.kernels if member.info else "",
            )
            for member in state.by_rank().values()
        ),
    )


def _fault_of_engine(state: GroupState, link: LeaderLink, now: float, limit_s: float) -> str:
    """Why the engine counts as wedged; empty if it does not."""
    if link.progress is None:
        return ""
    silent_s = now - link.progress_at
    if silent_s > limit_s:
        return f"the engine has been silent for {silent_s:.0f} s"
    # While there is no group, no step can be done; a hung one is a step's deadline's to find.
    idle_s = link.progress_at - max(link.moved_at, state.phase_since)
    if state.phase is GroupPhase.READY and idle_s > limit_s:
        return (
            f"the engine has done no step for {idle_s:.0f} s, "
            f"though {link.progress.num_running} requests are running"
        )
    still_s = link.progress_at - max(link.turned_at, state.phase_since)
    if state.phase is GroupPhase.READY and still_s > limit_s:
        return f"the engine's main loop has not turned for {still_s:.0f} s"
    return ""
