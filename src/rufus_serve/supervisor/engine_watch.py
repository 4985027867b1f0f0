"""`EngineWatch`: how far one group's engine is, by its heartbeats, and whether it stands still."""

import logging
from collections.abc import Mapping

from rufus_serve.protocol.messages import LeaderProgress
from rufus_serve.supervisor.lag import LagWatch

_log = logging.getLogger(__name__)


class EngineWatch:
    """Of one group's engine, whichever process that is at the time."""

    def __init__(self) -> None:
        self.progress: LeaderProgress | None = None
        self.progress_at = 0.0
        self.moved_at = 0.0
        """When the engine last did a step, had one under way, or had nothing to do."""
        self.turned_at = 0.0
        """When its main loop last turned, or had a step under way."""
        self.lag = LagWatch()

    def took_progress(self, message: LeaderProgress, now: float, hosts: Mapping[int, str]) -> None:
        """The engine's heartbeat; `hosts` are the followers' by rank."""
        before, self.progress, self.progress_at = self.progress, message, now
        stuck = message.num_running > 0 and not message.steps_in_flight
        if before is None or before.steps_done != message.steps_done or not stuck:
            self.moved_at = now
        asked = before is not None and message.turns and message.turns == before.turns
        if not asked or message.steps_in_flight:
            self.turned_at = now
        for warning in self.lag.take(message.follower_step_s, hosts):
            _log.warning("%s", warning)

    def forget(self) -> None:
        """There is no engine, or another one."""
        self.progress = None

    def fault(self, now: float, limit_s: float, *, ready_since: float | None) -> str:
        """Why the engine counts as wedged, if it stands still for `limit_s`; empty if it does not.

        `ready_since`: when its group became ready; None while it is not, as no step can be done.
        """
        if self.progress is None:
            return ""
        silent_s = now - self.progress_at
        if silent_s > limit_s:
            return f"the engine has been silent for {silent_s:.0f} s"
        if ready_since is None:
            return ""
        # A hung step is a step's deadline's to find.
        idle_s = self.progress_at - max(self.moved_at, ready_since)
        if idle_s > limit_s:
            return (
                f"the engine has done no step for {idle_s:.0f} s, "
                f"though {self.progress.num_running} requests are running"
            )
        still_s = self.progress_at - max(self.turned_at, ready_since)
        if still_s > limit_s:
            return f"the engine's main loop has not turned for {still_s:.0f} s"
        return ""
