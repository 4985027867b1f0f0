"""A process with vLLM imported, one thread and no sockets, of which engines are forked.

A fork takes a tenth of the time that importing vLLM takes. The API process forks the zygote
while it starts, and must not fork later: its threads may hold locks then, and every child would
keep its clients' connections open.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from rufus_serve.errors import LeaderError
from rufus_serve.leader.engine_spec import EngineSpec

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 16
# The API process answers to these, and ends the zygote by hanging up.
_LEFT_TO_API = (signal.SIGTERM, signal.SIGINT)


class Zygote:
    """The API process's handle; all methods are safe from any thread."""

    def __init__(self, become_engine: Callable[[EngineSpec], None]) -> None:
        """Fork; `become_engine` is what an engine process runs from start to end."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        # One that comes before the zygote ignores it would end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_API)
        self.pid = os.fork()
        if self.pid == 0:
            _run(theirs, become_engine, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def fork_engine(self, spec: EngineSpec) -> int:
        """The process id of a new engine.

        Raises:
            LeaderError: the zygote is gone.
        """
        try:
            with self._lock:
                self._socket.send(msgspec.msgpack.encode(spec))
                answer = self._socket.recv(_MAX_BYTES)
            return msgspec.msgpack.decode(answer, type=int)
        except (OSError, msgspec.DecodeError) as error:
            raise LeaderError(
                f"no engine can be started: process {self.pid}, which forks them, is gone"
            ) from error

    def close(self) -> None:
        """End the zygote, and with it the engines that still run."""
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _run(
    control: socket.socket,
    become_engine: Callable[[EngineSpec], None],
    mask: set[int] | set[signal.Signals],
) -> NoReturn:
    """The zygote's life; it ends when the API process hangs up."""
    engines: set[int] = set()

    def bury(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                engines.discard(ended[0])
                _report_end(*ended)

    try:
        signal.set_wakeup_fd(-1)
        for number in _LEFT_TO_API:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, bury)
        _let_go_of_files(control.fileno())
        while frame := control.recv(_MAX_BYTES):
            spec = msgspec.msgpack.decode(frame, type=EngineSpec)
            # A child that ends at once must be known before it is buried.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
            if pid == 0:
                _run_engine(control, spec, become_engine)
            engines.add(pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            control.send(msgspec.msgpack.encode(pid))
    finally:
        for pid in engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _run_engine(
    control: socket.socket, spec: EngineSpec, become_engine: Callable[[EngineSpec], None]
) -> NoReturn:
    code: object = LeaderError.exit_code
    try:
        control.close()
        for number in (signal.SIGCHLD, *_LEFT_TO_API):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        spec.enter_environment()
        become_engine(spec)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - the process edge
        _log.exception("the engine of group %d failed", spec.group)
    finally:
        logging.shutdown()
        os._exit(code if isinstance(code, int) else LeaderError.exit_code)


def _report_end(pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    _log.log(logging.WARNING if code else logging.DEBUG, "engine process %d %s", pid, how)


def _let_go_of_files(kept: int) -> None:
    """Put /dev/null in the place of all that was inherited open, but `kept` and the standard ones.

    Objects that came along may yet close their file by its number, so the numbers stay taken.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for entry in Path("/proc/self/fd").iterdir():
        number = int(entry.name)
        if number > 2 and number not in (kept, null):
            with contextlib.suppress(OSError):
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
