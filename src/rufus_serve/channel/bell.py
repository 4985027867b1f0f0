"""`Bell`: wakes a thread that polls, from any other thread."""

import contextlib
import socket
import threading


class Bell:
    """A pair of sockets; poll it for input, `hush` it once awake."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Descriptor to poll; -1 once closed."""
        return self._heard.fileno()

    def ring(self) -> None:
        """Wake the polling thread; any thread, never blocks."""
        with self._lock:
            if self._rung.fileno() >= 0:
                # A full buffer means that it rings already.
                with contextlib.suppress(BlockingIOError):
                    self._rung.send(b"!")

    def hush(self) -> None:
        """Take note of all rings so far."""
        with contextlib.suppress(BlockingIOError):
            self._heard.recv(4096)

    def close(self) -> None:
        """Free both ends; may be called twice."""
        with self._lock:
            self._heard.close()
            self._rung.close()
