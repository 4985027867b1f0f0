"""Tells people how start-up and recovery go: which node, which phase, how long."""

import logging
import time

from rufus_serve.supervisor.group_events import Member

_log = logging.getLogger("rufus_serve.supervisor")
_PROGRESS_S = 5.0


class Report:
    """Logs each change of phase once, and slow progress every few seconds."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phase_began: dict[str, tuple[str, float]] = {}
        self._progress_at: dict[str, float] = {}
        self.phases: list[tuple[str, float]] = []
        """(what ended, seconds since the start), for benchmarks."""

    def step(self, what: str) -> None:
        """A part of start-up is done."""
        elapsed = time.monotonic() - self._started
        self.phases.append((what, elapsed))
        _log.info("%s (%.1f s since start)", what, elapsed)

    def member(self, member: Member) -> None:
        """A follower may have changed its phase."""
        phase, began = self._phase_began.get(member.follower_id, ("", self._started))
        if phase == member.phase.value:
            return
        now = time.monotonic()
        self._phase_began[member.follower_id] = (member.phase.value, now)
        after = f" after {now - began:.1f} s {phase}" if phase else ""
        _log.info("%s: %s%s", member.name, member.phase.value, after)

    def progress(self, member: Member, *, done: int, total: int, detail: str) -> None:
        """A follower tells how far it is within its phase."""
        now = time.monotonic()
        if now - self._progress_at.get(member.follower_id, self._started) < _PROGRESS_S:
            return
        self._progress_at[member.follower_id] = now
        share = f"{100 * done // total} %" if total else f"{done}"
        _log.info("%s: %s %s %s", member.title, member.phase.value, share, detail)
