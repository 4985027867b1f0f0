"""What becomes of a driver whose threads fail."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from rufus_serve.cluster.ray_driver import Driver, give_up
from rufus_serve.cluster.ray_orders import (
    Alive,
    CannotJoin,
    Join,
    Launch,
    NotLaunched,
    RaySettings,
    Wire,
)
from rufus_serve.errors import ClusterError, ConfigError
from rufus_serve.protocol.specs import FollowerSpec

pytestmark = pytest.mark.timeout(30)
SPEC = FollowerSpec(config={}, node_rank=0, follower_id="0.1", control_endpoint="e", token="t")


@pytest.fixture
def wires():
    ends = socket.socketpair()
    wires = [Wire(end) for end in ends]
    yield wires
    for wire in wires:
        wire.close()


def test_a_thread_that_fails_ends_the_driver_with_the_reason(wires, monkeypatch) -> None:
    codes: Future[int] = Future()
    monkeypatch.setattr(os, "_exit", codes.set_result)
    monkeypatch.setattr(threading, "excepthook", lambda failed: give_up(wires[0], failed.exc_value))
    thread = threading.Thread(target=lambda: open("/no/such/file"))  # noqa: PTH123, SIM115
    thread.start()
    told = wires[1].next_news()
    assert isinstance(told, CannotJoin)
    assert told.reason.startswith("its driver failed: FileNotFoundError: ")
    assert told.may_pass
    assert codes.result(10) == ClusterError.exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("no interpreter"), ConfigError.exit_code),
     (ConnectionError("GCS is gone"), ClusterError.exit_code)],
)  # fmt: skip
def test_a_launch_that_fails_in_any_way_is_answered(error, code, wires) -> None:
    def launch(_: FollowerSpec) -> None:
        raise error

    driver = Driver.__new__(Driver)
    driver._wire = wires[0]
    driver._launch(SimpleNamespace(launch=launch), Launch(spec=SPEC))  # type: ignore[arg-type]
    said = NotLaunched(follower_id="0.1", reason=str(error), exit_code=code)
    assert wires[1].next_news() == said


def test_a_driver_whose_thread_fails_does_not_live_on(tmp_path) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "rufus_serve.cluster.ray_driver", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    wire = Wire(ours)
    settings = RaySettings(
        followers=1, spread=False, address="no address", port=0, existing="", join_s=60.0,
        python="", log_dir="", local_slots=1,
    )  # fmt: skip
    (tmp_path / "ray").mkdir()
    wire.send(Join(settings=settings, folder=str(tmp_path / "ray"), again=False))
    while not isinstance(told := wire.next_news(), CannotJoin):
        assert isinstance(told, Alive)
    assert "'no address' does not appear to be an IPv4 or IPv6 address" in told.reason
    assert process.wait(10) == ClusterError.exit_code
    wire.close()
