"""`Patience`: waiting for peers without hogging a core, and without waiting for ever."""

import os
import threading
import time
from collections.abc import Callable

from rufus_serve.errors import CollectiveAborted

# A yield costs below 1 µs, so that the first phase covers the usual spread between followers
# (well below 1 ms); a nap is short against a step, and leaves the core to whoever is awaited.
_NUM_YIELDS = 1500
_NAP_S = 50e-6


class Patience:
    """Waits until a condition holds, the abort event is set, or a deadline passes."""

    def __init__(self, aborted: threading.Event, *, deadline_s: float) -> None:
        self.waited_s = 0.0
        self._aborted = aborted
        self._deadline_s = deadline_s

    def wait(self, is_done: Callable[[], bool], *, check: Callable[[], None]) -> None:
        """Wait until `is_done`; `check` is called at each nap and may raise.

        Raises:
            CollectiveAborted: aborted, or past the deadline.
        """
        started = time.perf_counter()
        num_turns = 0
        try:
            while not is_done():
                self.raise_if_aborted()
                num_turns += 1
                if num_turns < _NUM_YIELDS:
                    os.sched_yield()
                    continue
                time.sleep(_NAP_S)
                check()
                self._raise_if_late(started)
        finally:
            self.waited_s += time.perf_counter() - started

    def raise_if_aborted(self) -> None:
        """Raise `CollectiveAborted` if the event is set."""
        if self._aborted.is_set():
            raise CollectiveAborted("the collective was aborted on this follower")

    def _raise_if_late(self, started: float) -> None:
        if time.perf_counter() - started > self._deadline_s:
            raise CollectiveAborted(
                f"peers did not come to a collective within {self._deadline_s:g} s"
            )
