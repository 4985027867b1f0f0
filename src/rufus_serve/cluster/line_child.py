"""`LineChild`: a child process in the followers' environment that answers line by line."""

import contextlib
import queue
import subprocess
import sys
import tempfile
import threading
from typing import IO

from rufus_serve.cluster.process import interpreter_of, last_words
from rufus_serve.errors import FollowerError

_END_S = 5.0


class LineChild:
    """Runs `python -m MODULE`; each line to its standard input is answered by one line."""

    def __init__(self, module: str, *, python: str = "") -> None:
        """Start it.

        Raises:
            ConfigError: `python` is no interpreter of this host.
        """
        interpreter, environ = interpreter_of(python or sys.executable)
        self._name = f"{interpreter} -m {module}"
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._process = subprocess.Popen(
            [interpreter, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environ,
        )
        threading.Thread(target=self._pump, name="child", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id on this host."""
        return self._process.pid

    def ask(self, line: bytes, *, timeout_s: float) -> bytes:
        """The answer to `line`.

        Raises:
            FollowerError: it ended, or does not answer in time; with its own last words.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        try:
            answer = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise FollowerError(f"{self._name} did not answer within {timeout_s:g} s") from None
        if not answer:
            code = self._process.wait()
            raise FollowerError(f"{self._name} ended with {code}: {last_words(self._errors)}")
        return answer

    def close(self) -> None:
        """End it; may be called twice."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(b"")
