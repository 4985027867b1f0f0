"""What probes, metrics and the log say of a group that is not well; the last test ends it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.losses import Probe, engine_of, pids, status_of, strike
from tests.e2e.server import Server, serving
from tests.e2e.streams import Streams, completion

FLAGS = (
    "--nodes=2", "--cluster.kind=local", "--recovery.deadline-s=0.2",
    "--timeouts.heartbeat-lost-s=3", "--timeouts.heartbeat-s=0.25", "--timeouts.step-floor-s=5",
)  # fmt: skip
TEXT = completion("word", max_tokens=1000, ignore_eos=True)


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with serving(tiny_model, *FLAGS) as server:
        yield server


def await_true(condition: Callable[[], bool], what: str, *, deadline_s: float = 60.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def codes(server: Server) -> tuple[int, int]:
    return server.get("/health")[0], server.get("/ready")[0]


@contextlib.contextmanager
def mostly_stopped(pid: int) -> Iterator[None]:
    """The process stands still nearly all of the time."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.005):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.06)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_lagging_follower_is_named_with_its_host_and_its_lag_is_measured(server: Server) -> None:
    with mostly_stopped(pids(server)[1]):
        streams = Streams(server.port, server.name, [TEXT] * 4)
        host = os.uname().nodename
        await_true(lambda: f"follower 1 on {host} is slow: " in server.log, server.log)
        await_true(lambda: server.metric("rufus_follower_skew_seconds") > 0.002, "no skew")
    answers = streams.finish()
    assert [answer.error for answer in answers] == [""] * 4


def test_health_is_503_once_recovery_takes_longer_than_its_deadline(server: Server) -> None:
    with Probe(server) as probe:
        blow = strike(server, 1)
        blow.wait_recovered()
        await_true(lambda: codes(server) == (200, 200), "it does not come back")
    assert probe.health == {200, 503}
    await_true(lambda: server.metric("rufus_group_epoch") == 2, "the epoch is not counted")
    assert server.metric("rufus_follower_restarts_total") == 1


def test_health_is_503_while_the_engine_is_wedged_and_its_streams_go_on_after(
    server: Server,
) -> None:
    engine = engine_of(server)
    (expected,) = Streams(server.port, server.name, [TEXT]).finish()
    streams = Streams(server.port, server.name, [TEXT])
    streams.wait_for_chunks(20)
    engine.suspend()
    try:
        assert server.get("/health")[0] == 200
        await_true(lambda: codes(server) == (503, 503), "a wedged engine is not seen")
        assert "the engine has been silent" in server.get("/health")[1]
    finally:
        engine.resume()
    (answer,) = streams.finish()
    answer.assert_same(expected)
    await_true(lambda: codes(server) == (200, 200), "it does not come back")


def test_followers_end_with_their_leader(server: Server) -> None:
    followers = [psutil.Process(pid) for pid in pids(server).values()]
    assert status_of(server).ready
    server.process.kill()
    server.process.wait(10)
    assert not psutil.wait_procs(followers, timeout=15)[1]
