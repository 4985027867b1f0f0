"""`Replacements`: ranks that await a new process, and how long they are kept waiting."""

from collections.abc import Sequence

_MAX_DOUBLINGS = 16


class Replacements:
    """After the first loss in a row each costs a longer pause; pure."""

    def __init__(self, *, backoff_s: float, max_backoff_s: float) -> None:
        self._backoff_s, self._max_backoff_s = backoff_s, max_backoff_s
        self._losses_in_a_row = 0
        self.pending: list[tuple[float, int]] = []
        """When to start a process, and for which rank."""

    def await_start(self, ranks: Sequence[int], now: float) -> None:
        """One loss took the processes of `ranks`; they start together."""
        if not ranks:
            return
        delay_s = 0.0
        if self._losses_in_a_row:
            delay_s = self._backoff_s * 2.0 ** min(self._losses_in_a_row - 1, _MAX_DOUBLINGS)
        self._losses_in_a_row += 1
        at = now + min(delay_s, self._max_backoff_s)
        self.pending += [(at, rank) for rank in ranks]

    def due(self, now: float) -> list[int]:
        """Ranks to start a process for; each is told once."""
        ranks = [rank for at, rank in self.pending if at <= now]
        self.pending = [(at, rank) for at, rank in self.pending if at > now]
        return ranks

    def forgive(self) -> None:
        """The group serves: the next loss is the first again."""
        self._losses_in_a_row = 0
