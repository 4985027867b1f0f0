"""Kills followers and measures, by the supervisor's log, how the group takes it."""

import contextlib
import datetime as dt
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rufus_serve.protocol.messages import Status
from rufus_serve.supervisor import orders
from tests.e2e.server import DEMO_MODEL, Server

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ +supervisor [\w.]+: (.*)$", re.M)
_PHASE = re.compile(
    r"follower (\d)(?: on \S+)?: \w+ after ([\d.]+) s (starting|loading|warming up)$"
)


@contextlib.contextmanager
def serving(
    *flags: str,
    model: Path = DEMO_MODEL,
    environ: dict[str, str] | None = None,
    meanwhile: Callable[[Server], None] = lambda _: None,
) -> Iterator[Server]:
    """A model, ready; no process may be left of it once it has ended.

    `meanwhile` is called while it starts.
    """
    server = Server(model, *flags, environ=environ)
    try:
        meanwhile(server)
        server.wait_ready(deadline_s=240.0)
        yield server
        server.stop()
        assert_no_process_remains(server)
    finally:
        server.remove()


def assert_no_process_remains(server: Server, *, deadline_s: float = 10.0) -> None:
    give_up = time.monotonic() + deadline_s
    while left := [entry for entry in server.remains() if not entry.startswith("/")]:
        assert time.monotonic() < give_up, left
        time.sleep(0.1)


def status_of(server: Server) -> Status:
    return orders.status(port=server.port, folder="")


def pids(server: Server) -> dict[int, int]:
    """Process ids by node rank."""
    return {follower.node_rank: follower.pid for follower in status_of(server).followers}


@dataclass(frozen=True)
class LogLine:
    """One line of the supervisor's log; `at` is in seconds since 1970."""

    at: float
    text: str


def supervisor_lines(log: str) -> list[LogLine]:
    parse = dt.datetime.strptime
    return [
        LogLine(parse(when, "%Y-%m-%d %H:%M:%S,%f").timestamp(), text)
        for when, text in _LINE.findall(log)
    ]


def strike(server: Server, *ranks: int, number: int = signal.SIGKILL) -> "Strike":
    """Send a signal to followers of `server`, all at once."""
    before = pids(server)
    length, at = len(server.log), time.time()
    for rank in ranks:
        psutil.Process(before[rank]).send_signal(number)
    return Strike(server, tuple(ranks), before, length, at)


@dataclass(frozen=True)
class Strike:
    """One blow, and what the supervisor's log says of what followed."""

    server: Server
    ranks: tuple[int, ...]
    pids_before: dict[int, int]
    log_length: int
    at: float

    def lines(self) -> list[tuple[float, str]]:
        """(seconds since the blow, text) of the supervisor's lines since then."""
        found = supervisor_lines(self.server.log[self.log_length :])
        return [(line.at - self.at, line.text) for line in found]

    def seconds_until(self, pattern: str, *, deadline_s: float = 90.0) -> float:
        """When the log first said `pattern`."""
        give_up = time.monotonic() + deadline_s
        while time.monotonic() < give_up:
            for seconds, text in self.lines():
                if re.search(pattern, text):
                    return seconds
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {deadline_s} s:\n{self.server.log}")

    def noticed_s(self) -> float:
        return self.seconds_until(r"^epoch \d+ is over")

    def wait_recovered(self, *, deadline_s: float = 90.0) -> float:
        """Seconds until the next epoch was ready; the survivors must be the same processes."""
        seconds = self.seconds_until(r"^epoch \d+ ready", deadline_s=deadline_s)
        status = status_of(self.server)
        for follower in status.followers:
            assert follower.load_count == 1, status
            if follower.node_rank not in self.ranks:
                assert follower.pid == self.pids_before[follower.node_rank], "a survivor died"
            else:
                assert follower.pid != self.pids_before[follower.node_rank]
        return seconds

    def load_s(self) -> float:
        """Seconds that the slowest new follower took to start and to load.

        Warming up counts if nobody survived: only then is it done anew.
        """
        everybody = len(self.ranks) == len(self.pids_before)
        return max(
            sum(spent for name, spent in parts.items() if everybody or name != "warming up")
            for parts in self.parts_s().values()
        )

    def parts_s(self) -> dict[str, dict[str, float]]:
        """Seconds by phase, of each follower that was started since."""
        found: dict[str, dict[str, float]] = {}
        for _, text in self.lines():
            if phase := _PHASE.search(text):
                parts = found.setdefault(phase[1], {})
                parts[phase[3]] = parts.get(phase[3], 0.0) + float(phase[2])
        return {rank: parts for rank, parts in found.items() if "loading" in parts}


class Probe:
    """Asks for /health and /ready all the time."""

    def __init__(self, server: Server) -> None:
        self._server, self._done = server, threading.Event()
        self.health: set[int] = set()
        self.ready: set[int] = set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            self.health.add(self._server.get("/health")[0])
            self.ready.add(self._server.get("/ready")[0])


def slowness() -> float:
    """How much slower than alone this machine's processes run: load per core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_ready(server: Server, *, deadline_s: float = 60.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not status_of(server).ready:
        assert time.monotonic() < give_up, server.log
        time.sleep(0.05)


def record(what: str, strikes: Sequence[Strike]) -> None:
    """Show how long recovery took (pytest -rP prints it)."""
    for blow in strikes:
        back, load = blow.seconds_until(r"^epoch \d+ ready"), blow.load_s()
        sys.stdout.write(
            f"{what}: noticed after {blow.noticed_s():.2f} s, serving after {back:.2f} s, of which "
            f"the replacement started and loaded for {load:.2f} s\n"
        )


def assert_recovered_in_time(what: str, blow: "Strike") -> None:
    """The loss was noticed, and all but its load done, within seconds."""
    recovered_s = blow.wait_recovered()
    record(what, [blow])
    assert blow.noticed_s() < 1.0 * slowness()
    assert recovered_s - blow.load_s() < 3.0 * slowness()


def engine_of(server: Server) -> psutil.Process:
    """The engine process of a server with one group."""
    (engine,) = engines_of(server)
    return engine


def engines_of(server: Server) -> list[psutil.Process]:
    """Engines, the oldest first, by the title that vLLM gives them; they may outlive a zygote."""
    found = (p for p in server.tagged() if p.cmdline()[0].startswith("VLLM::EngineCore"))
    return sorted(found, key=lambda process: process.create_time())


def zygotes_of(server: Server) -> list[psutil.Process]:
    """What engines are forked of; a fork has its parent's command line."""
    api = api_process_of(server)
    return [process for process in _leaders(server.tagged()) if process != api]


def api_process_of(server: Server) -> psutil.Process:
    """Serves HTTP; a child of the supervisor."""
    (api,) = _leaders(psutil.Process(server.process.pid).children())
    return api


def _leaders(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    words = ["-m", "rufus_serve.leader"]
    return [process for process in processes if process.cmdline()[1:3] == words]
