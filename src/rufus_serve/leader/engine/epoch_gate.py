"""Which epoch steps may be scheduled in; shared by scheduler, step thread and link."""

import threading


class EpochGate:
    """The engine's one record of epochs; all methods are safe from any thread.

    An epoch is announced, opened once its followers have shaken hands, and shut. One that was
    shut never opens again, so a late message about an old group does no harm.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: int | None = None
        self._announced = self._shut = -1

    @property
    def epoch(self) -> int | None:
        """The epoch that steps may run in; None while there is no group."""
        with self._changed:
            return self._open

    def announce(self, epoch: int) -> bool:
        """Note that a group of `epoch` formed; False if that is no news, or it is over already."""
        with self._changed:
            if epoch <= max(self._announced, self._shut):
                return False
            self._announced = epoch
            return True

    def open(self, epoch: int) -> bool:
        """Let steps of `epoch` through; False if it is over, or another one was announced since."""
        with self._changed:
            if epoch <= self._shut or epoch < self._announced:
                return False
            self._announced = self._open = epoch
            self._changed.notify_all()
            return True

    def shut(self, epoch: int) -> bool:
        """End `epoch` and all before it; True for the first who ends the newest announced."""
        with self._changed:
            is_first = self._shut < epoch == self._announced
            self._shut = max(self._shut, epoch)
            if self._open is not None and self._open <= epoch:
                self._open = None
            return is_first

    def wait(self, timeout_s: float) -> int | None:
        """The open epoch, waiting for one at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._open is not None, timeout_s)
            return self._open
