"""Faults of the network and of the runtime: streams go on, or all of them end with an error."""

import json
import time

import psutil
import pytest

from rufus_serve.channel.faults import VARIABLE
from rufus_serve.errors import RestartBudgetSpent
from tests.e2e.losses import assert_no_process_remains, pids, serving, status_of
from tests.e2e.server import Server
from tests.e2e.streams import Answer, Streams, every_kind

pytestmark = pytest.mark.timeout(300)

FLAGS = (
    "--nodes=2", "--dtype=float32", "--max-model-len=512", "--timeouts.step-floor-s=2",
    "--cluster.kind=local", "--buckets.prefill=64",
    "--recovery.max-restarts=50",
)  # fmt: skip
ASKS = every_kind(24)

# Counted per process: the one that `raise` ends leaves a successor with the same fault to come.
ONCE_EACH = [
    {"kind": "disconnect", "at": "request", "step_ids": [12], "node_rank": -2},
    {"kind": "drop", "at": "request", "step_ids": [14], "node_rank": 1},
    {"kind": "drop", "at": "reply", "step_ids": [16], "node_rank": 0},
    {"kind": "fail", "step_ids": [18], "node_rank": 1},
    {"kind": "raise", "step_ids": [60], "node_rank": 0},
]
ALL_THE_TIME = [
    {"kind": "delay", "probability": 0.05, "delay_s": 0.05, "max_count": 0},
    {"kind": "duplicate", "probability": 0.05, "max_count": 0},
    {"kind": "duplicate", "at": "request", "probability": 0.05, "max_count": 0, "node_rank": -2},
]


def plan(*faults: dict[str, object]) -> dict[str, str]:
    return {VARIABLE: json.dumps({"seed": 5, "faults": faults})}


def run(server: Server) -> list[Answer]:
    return Streams(server.port, server.name, ASKS).finish()


def kill_one_while_it_loads(server: Server) -> None:
    give_up = time.monotonic() + 120.0
    while "follower 1 on" not in server.log:
        assert time.monotonic() < give_up, server.log
        time.sleep(0.02)
    psutil.Process(pids(server)[1]).kill()


def test_streams_outlive_a_bad_network_and_failing_steps_after_a_disturbed_start() -> None:
    faults = plan(*ONCE_EACH, *ALL_THE_TIME)
    with serving(*FLAGS, environ=faults, meanwhile=kill_one_while_it_loads) as server:
        assert status_of(server).restarts == 1
        rounds = [run(server)]
        while status_of(server).restarts < 1 + len(ONCE_EACH) and len(rounds) < 4:
            rounds.append(run(server))
        rounds.append(run(server))
        assert status_of(server).restarts >= 1 + len(ONCE_EACH)
        for answers in rounds:
            for answer, other in zip(answers, rounds[-1], strict=True):
                answer.assert_same(other)


def test_a_step_that_always_fails_ends_every_request_with_an_error_and_the_server() -> None:
    poison = plan({"kind": "fail", "step_ids": [10], "max_count": 0})
    with serving(*FLAGS[:-1], "--recovery.max-restarts=2", environ=poison) as server:
        for answer in run(server):
            assert "restart budget spent (2 restarts" in answer.error, answer
            assert VARIABLE in answer.error
        assert server.process.wait(20) == RestartBudgetSpent.exit_code
        assert_no_process_remains(server)
