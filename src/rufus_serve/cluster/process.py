"""One follower process on this host: started, watched, killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO

import msgspec

from rufus_serve.cluster.base import LOG_TAIL_LINES, FollowerExit, OnExit
from rufus_serve.errors import ClusterError
from rufus_serve.protocol.specs import FollowerSpec


class FollowerProcess:
    """Runs `python -m rufus_serve.follower`; the spec, with its secret, goes through a pipe.

    Its log goes to `log_file`, if given, or else to our standard error.
    """

    def __init__(
        self,
        spec: FollowerSpec,
        *,
        python: str = "",
        log_file: Path | None = None,
        on_exit: OnExit,
    ) -> None:
        self._follower_id = spec.follower_id
        self._log_file = log_file
        self._on_exit = on_exit
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._process = _spawn(python or sys.executable)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(spec) + b"\n")
        self._process.stdin.flush()
        threading.Thread(target=self._watch, name=f"follower {spec.follower_id}").start()

    @property
    def pid(self) -> int:
        """Process id on this host."""
        return self._process.pid

    def kill(self) -> None:
        """End the process and all it started."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def _watch(self) -> None:
        assert self._process.stderr is not None
        out = self._log_file.open("ab") if self._log_file else None
        try:
            self._pump(self._process.stderr, out)
        finally:
            if out is not None:
                out.close()
        code = self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        tail = "\n".join(self._tail)
        self._on_exit(FollowerExit(follower_id=self._follower_id, code=code, log_tail=tail))

    def _pump(self, source: IO[bytes], out: IO[bytes] | None) -> None:
        for line in source:
            self._tail.append(line.decode(errors="replace").rstrip())
            if out is not None:
                out.write(line)
                out.flush()
            else:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()


def _spawn(python: str) -> "subprocess.Popen[bytes]":
    interpreter = shutil.which(python)
    if interpreter is None:
        raise ClusterError(f"cluster.python {python!r} is not an interpreter on this host")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ["PYTHONUNBUFFERED"] = "1"
    if Path(interpreter).resolve() != Path(sys.executable).resolve():
        environ.pop("PYTHONPATH", None)
    return subprocess.Popen(
        [interpreter, "-m", "rufus_serve.follower"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ,
        start_new_session=True,
    )
