"""`RecoveryTime`: how long the group takes to form, and how long it may."""

from rufus_serve.supervisor.group_events import GroupPhase, GroupSettings


class RecoveryTime:
    """Measured from the loss, or the start, until every follower awaits steps; pure."""

    def __init__(self, settings: GroupSettings) -> None:
        self._settings = settings
        self._formed_in_s = 0.0
        self.start_s = 0.0
        """Of the first start; 0 before it ended."""
        self.last_s = 0.0
        """Of the last recovery; 0 if there was none."""
        self.count = 0
        """Recoveries so far."""

    def note(self, phase: GroupPhase, took_s: float) -> None:
        """The group was in `phase` for `took_s`, and is ready."""
        if phase in (GroupPhase.STARTING, GroupPhase.RECOVERING):
            self._formed_in_s = took_s
        if phase is GroupPhase.STARTING:
            self.start_s = took_s
        if phase is GroupPhase.RECOVERING:
            self.last_s = took_s
            self.count += 1

    @property
    def deadline_s(self) -> float:
        """How long a recovery may take before the group counts as unhealthy."""
        settings = self._settings
        least = 2 * self._formed_in_s if settings.deadline_follows_start else 0.0
        return max(settings.deadline_s, least)
