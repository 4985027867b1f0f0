"""Processes with vLLM imported, one thread and no sockets, of which engines are forked.

A fork takes a tenth of the time that importing vLLM takes. The API process forks the first two
while it starts, and must not fork later: its threads may hold locks then, and every child would
keep its clients' connections open. A zygote may fork at any time, so when one of the two is gone
the other one makes its replacement.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import msgspec

from rufus_serve.errors import LeaderError
from rufus_serve.leader.engine_spec import EngineSpec

BecomeEngine = Callable[[EngineSpec], None]
"""What an engine process runs from start to end."""

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 16
_FORK_S = 10.0
"""For an answer; a zygote that is stopped gives none."""
_END_S, _RETRY_S = 1.0, 1.0
_ANOTHER_ZYGOTE = b"zygote"
# The API process answers to these, and ends the zygotes by hanging up.
_LEFT_TO_API = (signal.SIGTERM, signal.SIGINT)


class _Handle:
    """The API process's end of one zygote."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        control.settimeout(_FORK_S)
        self.control, self.pid = control, pid
        self.pidfd = os.pidfd_open(pid)

    def ask(self, frame: bytes, *passed: int) -> int:
        """The id of the process that it forked for `frame`; 0 if it is gone or hangs."""
        try:
            socket.send_fds(self.control, [frame], passed)
            return msgspec.msgpack.decode(self.control.recv(_MAX_BYTES), type=int)
        except (OSError, msgspec.DecodeError):
            return 0

    def kill(self) -> None:
        """End it so that its engines live on."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Hang up, and make sure that it ends."""
        self.control.close()
        if not _with_news([self.pidfd], timeout_s=_END_S):
            self.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


class Zygotes:
    """The API process's two; all methods are safe from any thread."""

    def __init__(self, become_engine: BecomeEngine) -> None:
        """Fork both."""
        self._lock = threading.Lock()
        self._closed = False
        self._handles = [_first_zygote(become_engine) for _ in range(2)]
        self._wake, self._woken = os.pipe()[::-1]
        self._watcher = threading.Thread(target=self._watch, name="zygotes", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of those there are."""
        with self._lock:
            return tuple(handle.pid for handle in self._handles)

    def fork_engine(self, spec: EngineSpec) -> int:
        """The process id of a new engine.

        Raises:
            LeaderError: all zygotes are gone.
        """
        with self._lock:
            pid = self._ask(msgspec.msgpack.encode(spec))
        if not pid:
            raise LeaderError("no engine can be started: the processes that fork them are gone")
        return pid

    def close(self) -> None:
        """End the zygotes, and with them the engines that still run."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        os.close(self._wake)
        self._watcher.join()
        for handle in self._handles:
            handle.close()
        os.close(self._woken)

    def _ask(self, frame: bytes, *passed: int) -> int:
        """What the first one that answers forked; 0 if none does."""
        while self._handles:
            if pid := self._handles[0].ask(frame, *passed):
                return pid
            self._drop(self._handles[0])
        return 0

    def _drop(self, handle: _Handle) -> None:
        _log.warning("process %d, which forks engines, is gone or hangs", handle.pid)
        self._handles.remove(handle)
        handle.kill()
        handle.close()

    def _watch(self) -> None:
        """Replace whichever ends, until there is none or this is closed."""
        ended: list[_Handle] = []
        while True:
            with self._lock:
                if self._closed:
                    return
                self._replace(ended)
                by_pidfd = {handle.pidfd: handle for handle in self._handles}
            if not by_pidfd:
                return
            pause_s = _RETRY_S if len(by_pidfd) == 1 else None
            # One that was dropped meanwhile has news too, and is not among ours any more.
            ready = _with_news([self._woken, *by_pidfd], timeout_s=pause_s)
            ended = [by_pidfd[pidfd] for pidfd in ready if pidfd in by_pidfd]

    def _replace(self, ended: list[_Handle]) -> None:
        for handle in ended:
            if handle in self._handles:
                self._drop(handle)
        if len(self._handles) == 1:
            ours, theirs = _socket_pair()
            with theirs:
                pid = self._ask(_ANOTHER_ZYGOTE, theirs.fileno())
            try:
                self._handles.append(_Handle(ours, pid))
            except OSError:  # it is gone already, or there was nobody to make it
                ours.close()


def _with_news(files: Iterable[int], *, timeout_s: float | None) -> list[int]:
    """Those that have something to read, or none by then; clients may hold all of select's 1024."""
    poll = select.poll()
    for each in files:
        poll.register(each, select.POLLIN)
    return [each for each, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _first_zygote(become_engine: BecomeEngine) -> _Handle:
    ours, theirs = _socket_pair()
    # A signal that comes before the zygote ignores it would end it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_API)
    pid = os.fork()
    if pid == 0:
        _run(theirs, become_engine)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return _Handle(ours, pid)


def _run(control: socket.socket, become_engine: BecomeEngine) -> NoReturn:
    """A zygote's life; it ends when the API process hangs up."""
    engines: set[int] = set()

    def bury(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                kind = "engine" if ended[0] in engines else "zygote"
                engines.discard(ended[0])
                _report_end(kind, *ended)

    try:
        _settle(control, bury)
        while True:
            frame, passed, *_ = socket.recv_fds(control, _MAX_BYTES, 1)
            if not frame:
                break
            # A child that ends at once must be known before it is buried.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
            if pid == 0:
                engines.clear()
                _begin(control, frame, passed, become_engine)
            if not passed:
                engines.add(pid)
            for descriptor in passed:
                os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            control.send(msgspec.msgpack.encode(pid))
    finally:
        for pid in engines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _settle(control: socket.socket, bury: Callable[..., None]) -> None:
    signal.set_wakeup_fd(-1)
    for number in _LEFT_TO_API:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, bury)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_LEFT_TO_API, signal.SIGCHLD})
    control.settimeout(None)
    _let_go_of_files(control.fileno())


def _begin(
    control: socket.socket, frame: bytes, passed: list[int], become_engine: BecomeEngine
) -> NoReturn:
    """The child's part of a fork."""
    if passed:
        _run(socket.socket(fileno=passed[0]), become_engine)
    _run_engine(control, msgspec.msgpack.decode(frame, type=EngineSpec), become_engine)


def _run_engine(control: socket.socket, spec: EngineSpec, become_engine: BecomeEngine) -> NoReturn:
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
    except BaseException as error:  # noqa: BLE001 - the process edge
        _log.exception("the engine of group %d failed", spec.group)
        spec.leave_word(error)
    finally:
        logging.shutdown()
        os._exit(code if isinstance(code, int) else LeaderError.exit_code)


def _report_end(kind: str, pid: int, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    _log.log(logging.WARNING if code else logging.DEBUG, "%s process %d %s", kind, pid, how)


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
