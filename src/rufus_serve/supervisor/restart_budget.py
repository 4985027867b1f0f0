"""`RestartBudget`: tells a group that recovers and works on from one that only restarts."""

from collections import deque

PROGRESS_STEPS = 8
"""Steps after which a group counts as working: more than a prompt that fails at once takes."""


class RestartBudget:
    """Restarts in a row without progress in between, within a window of time; pure."""

    def __init__(self, *, max_restarts: int, window_s: float) -> None:
        self._max_restarts, self._window_s = max_restarts, window_s
        self._spent: deque[tuple[float, str]] = deque()
        self._steps = self._steps_at_restart = 0
        self.total = 0
        """Restarts in all, those forgiven included."""

    def took_steps(self, steps_done: int) -> None:
        """An engine has done so many steps since it was started; another one counts anew."""
        if steps_done < self._steps:
            self._steps_at_restart = 0
        self._steps = steps_done

    def spend(self, reason: str, now: float) -> str:
        """Take one restart out of it; why the group has to fail instead, or else nothing."""
        if self._steps - self._steps_at_restart >= PROGRESS_STEPS:
            self._spent.clear()
        self._steps_at_restart = self._steps
        while self._spent and now - self._spent[0][0] > self._window_s:
            self._spent.popleft()
        if len(self._spent) >= self._max_restarts:
            limit = f"{self._max_restarts} restarts without progress in {self._window_s:g} s"
            first = f"first: {self._spent[0][1]}; " if self._spent else ""
            return f"restart budget spent ({limit}); {first}last: {reason}"
        self._spent.append((now, reason))
        self.total += 1
        return ""
