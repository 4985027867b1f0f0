"""`Status` as probes and people see it."""

import time

from rufus_serve.protocol.group_events import GroupPhase
from rufus_serve.protocol.group_state import GroupState
from rufus_serve.protocol.messages import FollowerStatus, Status
from rufus_serve.supervisor.leader_link import LeaderLink

_ENGINE_SILENT_S = 10.0


def status_of(state: GroupState, link: LeaderLink, *, draining: bool, serving: bool) -> Status:
    """The group's status now."""
    now = time.monotonic()
    silent = bool(link.progress) and now - link.progress_at > _ENGINE_SILENT_S
    detail = state.failure
    if silent:
        detail = f"the engine has been silent for {now - link.progress_at:.0f} s"
    ready = state.phase is GroupPhase.READY and serving and not draining and not silent
    return Status(
        state="draining" if draining else state.phase.value,
        epoch=state.epoch,
        healthy=state.healthy(now) and not silent,
        ready=ready,
        detail=detail,
        restarts=state.total_restarts,
        followers=tuple(
            FollowerStatus(
                node_rank=member.node_rank,
                host=member.host,
                pid=member.pid,
                phase=member.phase.value,
                phase_s=now - member.since,
                load_count=member.load_count,
                step_s=link.lag.step_s.get(member.node_rank, 0.0),
            )
            for member in state.by_rank().values()
        ),
    )
