"""A follower that is busy in one call is told from one that stands still."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.losses import pids, status_of
from tests.e2e.server import Server

HELD_S = 20
LOST_S = 4.0
HOLDING_LOAD = f"""
import ctypes
from rufus_serve.runtime.cpu.runtime import CpuRuntime
load = CpuRuntime.load
def held(self, progress):
    ctypes.PyDLL(None).sleep({HELD_S})
    return load(self, progress)
CpuRuntime.load = held
"""


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[Server]:
    """Its followers hold the interpreter for all of `HELD_S` while they load."""
    (tmp_path / "sitecustomize.py").write_text(HOLDING_LOAD)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    server = Server(
        tiny_model, "--nodes=2", "--cluster.kind=local", "--dtype=float32", "--max-model-len=512",
        f"--cluster.python={python}", f"--timeouts.heartbeat-lost-s={LOST_S}",
    )  # fmt: skip
    try:
        yield server
    finally:
        server.remove()


def loading(server: Server) -> None:
    give_up = time.monotonic() + 60.0
    while "follower 0 on" not in server.log or "follower 1 on" not in server.log:
        assert time.monotonic() < give_up, server.log
        time.sleep(0.05)


def test_a_load_that_holds_the_interpreter_costs_no_restart(server: Server) -> None:
    loading(server)
    began = time.monotonic()
    server.wait_ready()
    assert time.monotonic() - began > HELD_S - 1
    status = status_of(server)
    assert (status.restarts, status.epoch) == (0, 1), server.log


def test_a_process_that_stands_still_while_it_loads_is_found_within_its_limit(
    server: Server,
) -> None:
    loading(server)
    stopped = pids(server)[1]
    psutil.Process(stopped).send_signal(signal.SIGSTOP)
    at = time.monotonic()
    while pids(server)[1] == stopped:
        assert time.monotonic() - at < 2 * LOST_S, server.log
        time.sleep(0.05)
    assert status_of(server).restarts == 1


WEDGED_LOOP = """
import os, time
from rufus_serve.leader.engine.step_counter import StepCounter
turned = StepCounter.turned
def held(self):
    while os.path.exists({path!r}):
        time.sleep(0.05)
    turned(self)
StepCounter.turned = held
"""


def test_an_engine_whose_main_loop_stands_still_while_idle_is_replaced(
    tiny_model: Path, tmp_path: Path
) -> None:
    wedge = tmp_path / "wedge"
    (tmp_path / "sitecustomize.py").write_text(WEDGED_LOOP.format(path=str(wedge)))
    server = Server(
        tiny_model, "--cluster.kind=local", "--max-model-len=512", "--timeouts.heartbeat-lost-s=2",
        environ={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    try:
        server.wait_ready()
        time.sleep(6.0)
        assert "has not turned" not in server.log
        wedge.touch()
        give_up = time.monotonic() + 30.0
        while "the engine's main loop has not turned" not in server.log:
            assert time.monotonic() < give_up, server.log
            time.sleep(0.1)
        wedge.unlink()
        server.wait_ready()
        assert server.ask(max_tokens=2)
    finally:
        server.remove()
