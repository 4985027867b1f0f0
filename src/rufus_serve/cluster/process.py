"""One follower process on this host: started, watched, killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec
import psutil

from rufus_serve.cluster.base import LOG_TAIL_LINES, FollowerExit, OnExit
from rufus_serve.errors import ConfigError
from rufus_serve.protocol.specs import FollowerSpec

# It is for the host's init to bury the process, which in a container may never happen.
_GONE_S = 2.0
_EXEC_S = 0.5
_POLL_S = 0.2
_SHOWN_LINES = 3
_MODULE = "rufus_serve.follower"


class FollowerProcess:
    """Runs `python -m rufus_serve.follower`; the spec, with its secret, goes through a pipe.

    Its log goes to `log_file`, if given, or else to our standard error; beside that file it
    leaves the cause of its end. With a log file of its own it does not need us once it runs.
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
        self._log_file, self._log_begin = log_file, 0
        self._on_exit = on_exit
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        interpreter = python or sys.executable
        if log_file is not None:
            cause_file = _cause_file(log_file)
            cause_file.unlink(missing_ok=True)
            spec = msgspec.structs.replace(spec, cause_file=str(cause_file))
        if log_file is None:
            self._process = _spawn(interpreter, subprocess.PIPE)
        else:
            # The follower writes the file itself, so that it can outlive this process.
            with log_file.open("ab") as log:
                # An earlier group's follower of the same name may have written there.
                self._log_begin = log.tell()
                self._process = _spawn(interpreter, log)
        assert self._process.stdin is not None
        # A process that ended at once is told of like any other, by `_watch`.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(spec) + b"\n")
            self._process.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        threading.Thread(
            target=self._watch, name=f"follower {spec.follower_id}", daemon=True
        ).start()

    @property
    def pid(self) -> int:
        """Process id on this host."""
        return self._process.pid

    def kill(self) -> None:
        """End the process and all it started."""
        if self._process.poll() is None:
            kill_session(self._process.pid)

    def _watch(self) -> None:
        if self._process.stderr is not None:
            self._pump(self._process.stderr)
        code = self._process.wait()
        kill_session(self._process.pid)
        self._tail.extend(_last_lines(self._log_file, begin=self._log_begin))
        self._on_exit(
            FollowerExit(
                follower_id=self._follower_id,
                code=code,
                cause=_read_cause(self._log_file),
                log_tail="\n".join(self._tail),
            )
        )

    def _pump(self, source: IO[bytes]) -> None:
        with source:
            for line in source:
                self._tail.append(line.decode(errors="replace").rstrip())
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()


class AdoptedProcess:
    """A follower on this host that another process started; polled, since it is not our child.

    How it ended cannot be known: it is told as killed.
    """

    def __init__(
        self, follower_id: str, pid: int, *, log_file: Path | None = None, on_exit: OnExit
    ) -> None:
        self._follower_id, self.pid, self._on_exit = follower_id, pid, on_exit
        self._log_file = log_file
        self._process = _find(pid)
        threading.Thread(target=self._watch, name=f"follower {follower_id}", daemon=True).start()

    def kill(self) -> None:
        """End the process, if it is still the same one; returns once it is gone, or soon."""
        deadline = time.monotonic() + _GONE_S
        if self._runs():
            kill_session(self.pid)
        while self._runs() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _runs(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return (
                self._process is not None
                and self._process.is_running()
                and self._process.status() != psutil.STATUS_ZOMBIE
            )
        return False

    def _watch(self) -> None:
        while self._runs():
            time.sleep(_POLL_S)
        self._on_exit(
            FollowerExit(
                follower_id=self._follower_id,
                code=-signal.SIGKILL,
                cause=_read_cause(self._log_file),
                log_tail="\n".join(_last_lines(self._log_file)),
            )
        )


def _find(pid: int) -> psutil.Process | None:
    """The process `pid` if it is a follower: ids are used again, and containers have their own."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        deadline = time.monotonic() + _EXEC_S
        # A process that was just started has no command line for a moment.
        while not (words := process.cmdline()) and time.monotonic() < deadline:
            time.sleep(_EXEC_S / 50)
        if _MODULE in words:
            return process
    return None


def is_follower(pid: int) -> bool:
    """Whether a follower runs on this host by that id."""
    return _find(pid) is not None


def await_gone(pids: Iterable[int]) -> None:
    """Return once no follower runs by these ids on this host, or soon."""
    left, deadline = set(pids), time.monotonic() + _GONE_S
    while left := {pid for pid in left if is_follower(pid)}:
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def kill_session(pid: int) -> None:
    """End a follower and all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def log_file_in(folder: Path, follower_id: str) -> Path:
    """Where the follower writes its log."""
    return folder / f"follower-{follower_id}.log"


def _cause_file(log_file: Path) -> Path:
    return log_file.with_suffix(".cause")


def _read_cause(log_file: Path | None) -> str:
    """Why the follower ended, by its own word; empty if it left none."""
    try:
        return _cause_file(log_file).read_text() if log_file is not None else ""
    except OSError:
        return ""


def _last_lines(log_file: Path | None, *, begin: int = 0) -> list[str]:
    """The last lines of a follower's log from the byte `begin` on; none without a log."""
    try:
        text = log_file.read_bytes()[begin:].decode(errors="replace") if log_file else ""
    except OSError:
        return []
    return text.splitlines()[-LOG_TAIL_LINES:]


def _spawn(python: str, log: IO[bytes] | int) -> "subprocess.Popen[bytes]":
    interpreter, environ = interpreter_of(python)
    return subprocess.Popen(
        [interpreter, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env=environ,
        start_new_session=True,
    )


def kill_marked(variable: str, value: str) -> None:
    """Kill the followers on this host that were started with `variable` as `value`."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if _MODULE in process.cmdline() and process.environ().get(variable) == value:
                kill_session(process.pid)


def end(process: "subprocess.Popen[bytes]", *, deadline_s: float) -> None:
    """Ask `process` to end if it runs, and kill it if it has not by the deadline."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_words(output: IO[bytes]) -> str:
    """The last lines that a process wrote into the file `output`, as one."""
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return " ".join(line.strip() for line in lines[-_SHOWN_LINES:]) or "no message"


def interpreter_of(python: str) -> tuple[str, dict[str, str]]:
    """The followers' interpreter, and the environment variables to start it with.

    Raises:
        ConfigError: there is no such interpreter on this host.
    """
    interpreter = shutil.which(python)
    if interpreter is None:
        raise ConfigError(
            f"cluster.python {python!r} is not an interpreter on host {socket.gethostname()}"
        )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ["PYTHONUNBUFFERED"] = "1"
    # Virtual environments are told by their folder: their interpreters may be one file.
    if Path(interpreter).parent.resolve() != Path(sys.executable).parent.resolve():
        environ.pop("PYTHONPATH", None)
    return interpreter, environ
