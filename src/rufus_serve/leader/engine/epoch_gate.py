"""Which epoch steps may be scheduled in; shared by scheduler, step thread and link."""

import threading


class EpochGate:
    """Open while a group answers steps; all methods are safe from any thread.

    An epoch once shut never opens again, so a late message about an old group does no harm.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: int | None = None
        self._newest = -1

    @property
    def epoch(self) -> int | None:
        """The epoch that steps may run in; None while there is no group."""
        return self._open

    def open(self, epoch: int) -> bool:
        """Let steps of `epoch` through; False if that epoch is over already."""
        with self._changed:
            if epoch <= self._newest:
                return False
            self._newest = self._open = epoch
            self._changed.notify_all()
            return True

    def shut(self, epoch: int) -> bool:
        """End `epoch`; True if it was the open one."""
        with self._changed:
            self._newest = max(self._newest, epoch)
            if self._open is None or self._open > epoch:
                return False
            self._open = None
            return True

    def wait(self, timeout_s: float) -> int | None:
        """The open epoch, waiting for one at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._open is not None, timeout_s)
            return self._open
