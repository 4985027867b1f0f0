"""Notices a follower that computes steadily slower than its peers."""

import statistics
from collections.abc import Mapping

_KEEP = 0.9
_RATIO = 1.5
_LEAST_S = 0.005
_REPORTS = 10


class LagWatch:
    """Smoothed step times of the followers; pure, one report at a time."""

    def __init__(self) -> None:
        self.step_s: dict[int, float] = {}
        self._lagging: dict[int, int] = {}

    def take(self, report: tuple[float, ...], hosts: Mapping[int, str]) -> list[str]:
        """Warnings that `report` (seconds per step by rank) gives rise to, each once.

        `hosts`: the followers' hosts by rank.
        """
        for rank, seconds in enumerate(report):
            before = self.step_s.get(rank, seconds)
            self.step_s[rank] = _KEEP * before + (1 - _KEEP) * seconds
        warnings = [self._check(rank, hosts.get(rank, "?")) for rank in self.step_s if report]
        return [text for text in warnings if text]

    def _check(self, rank: int, host: str) -> str:
        others = [seconds for other, seconds in self.step_s.items() if other != rank]
        own = self.step_s[rank]
        typical = statistics.median(others) if others else own
        if own < _RATIO * typical or own - typical < _LEAST_S:
            self._lagging[rank] = 0
            return ""
        self._lagging[rank] = self._lagging.get(rank, 0) + 1
        if self._lagging[rank] != _REPORTS:
            return ""
        return (
            f"follower {rank} on {host} is slow: {1000 * own:.1f} ms of compute a step, "
            f"its peers {1000 * typical:.1f} ms"
        )
