"""`Host`: where groups compute; those that share one machine slow each other down."""

from collections.abc import Generator, Sequence
from typing import Any

import simpy


class Host:
    """The machine under some groups."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._num_busy = 0
        self._changed = env.event()

    def work(self, durations_s: Sequence[float]) -> Generator[Any, Any, None]:
        """What takes `durations_s[n - 1]` while n groups are at work, the last one for more.

        Its pace changes whenever others come and go. It may be interrupted.
        """
        if len(durations_s) == 1:
            yield self._env.timeout(durations_s[0])
            return
        self._count(1)
        try:
            yield from self._share(durations_s)
        finally:
            self._count(-1)

    def _share(self, durations_s: Sequence[float]) -> Generator[Any, Any, None]:
        left = 1.0
        while True:
            began = self._env.now
            whole_s = durations_s[min(self._num_busy, len(durations_s)) - 1]
            done = self._env.timeout(left * whole_s)
            yield done | self._changed
            if done.processed or not whole_s:
                return
            left = max(0.0, left - (self._env.now - began) / whole_s)

    def _count(self, more: int) -> None:
        self._num_busy += more
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()
