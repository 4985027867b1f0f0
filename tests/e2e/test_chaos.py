"""More faults: streams go on, or all of them end with an error.

Which test covers what; those without a file are here, and streams of all kinds are compared with
their undisturbed runs wherever streams run.

| fault | prefill | decode | idle | start-up | during recovery |
|---|---|---|---|---|---|
| kill -9 | `test_recovery`: long prompt | `test_recovery`: one, both; two of three | \
`test_recovery`; two of three here | disturbed start | `test_recovery`: replacement, survivor |
| SIGSTOP | trio | `test_recovery`; with a kill at once: trio | trio | disturbed start | trio |
| closed sockets, dropped and delayed frames, a failing step, an exception | \
`contract/test_channel_contract` | bad network | - | `contract/test_runtime_recovery`: joins | \
bad network, in a row |
| full disk | - | - | - | `contract/test_artifacts_fetch` | the same code |
| another version | - | - | `test_adoption` (leader) | `test_start_failures` | \
`unit/supervisor/test_follower_desk` |

Two followers with asynchronous scheduling: `test_recovery`, bad network. Three without: the trio,
bad network, and the last test of `test_recovery`, which spends the budget.
"""

import functools
import json
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from rufus_serve.channel.faults import VARIABLE
from rufus_serve.errors import RestartBudgetSpent
from tests.e2e import groups
from tests.e2e.losses import (
    assert_no_process_remains,
    pids,
    serving,
    status_of,
    strike,
    wait_ready,
)
from tests.e2e.server import Server
from tests.e2e.streams import Answer, Streams, every_kind

pytestmark = pytest.mark.timeout(300)

FLAGS = (
    "--dtype=float32", "--max-model-len=512", "--timeouts.step-floor-s=2",
    "--cluster.kind=local", "--buckets.prefill=64",
)  # fmt: skip
ASKS = every_kind(24)

# Counted per process: the one that `raise` ends leaves a successor with the same fault to come.
ONCE_EACH = [
    {"kind": "disconnect", "at": "request", "step_ids": [12], "node_rank": -2},
    {"kind": "drop", "at": "request", "step_ids": [14], "node_rank": 1},
    {"kind": "drop", "at": "reply", "step_ids": [16], "node_rank": 0},
    {"kind": "fail", "step_ids": [18], "node_rank": 1},
    {"kind": "disconnect", "step_ids": [20], "node_rank": 1},
    {"kind": "delay", "step_ids": [22], "node_rank": 0, "delay_s": 3.0},
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


def strike_one_while_it_loads(server: Server, number: int) -> None:
    give_up = time.monotonic() + 120.0
    while "follower 1 on" not in server.log:
        assert time.monotonic() < give_up, server.log
        time.sleep(0.02)
    psutil.Process(pids(server)[1]).send_signal(number)


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        (("--nodes=2",), signal.SIGKILL),
        (("--nodes=3", "--no-async-scheduling"), signal.SIGSTOP),
    ],
    ids=["two, killed at the start", "three, hung at the start, without async scheduling"],
)
def test_streams_outlive_a_bad_network_and_failing_steps_after_a_disturbed_start(
    flags: tuple[str, ...], number: int
) -> None:
    faults = plan(*ONCE_EACH, *ALL_THE_TIME)
    disturb = functools.partial(strike_one_while_it_loads, number=number)
    with serving(*flags, *FLAGS, environ=faults, meanwhile=disturb) as server:
        assert status_of(server).restarts == 1
        rounds = [run(server)]
        while status_of(server).restarts < 1 + len(ONCE_EACH) and len(rounds) < 5:
            rounds.append(run(server))
        rounds.append(run(server))
        assert status_of(server).restarts >= 1 + len(ONCE_EACH)
        for answers in rounds:
            for answer, other in zip(answers, rounds[-1], strict=True):
                answer.assert_same(other)


def test_a_step_that_always_fails_ends_every_request_with_an_error_and_the_server() -> None:
    broken = plan({"kind": "fail", "step_ids": [2], "max_count": 0})
    with serving("--nodes=2", *FLAGS, "--recovery.max-restarts=3", environ=broken) as server:
        answers = run(server)
        assert all(VARIABLE in answer.error for answer in answers), answers
        assert any("restart budget spent (3 restarts" in answer.error for answer in answers)
        assert server.process.wait(20) == RestartBudgetSpent.exit_code
        assert_no_process_remains(server)


@pytest.fixture(scope="module")
def trio() -> Iterator[groups.Group]:
    """Three followers and a stand-by, without asynchronous scheduling."""
    flags = ("--nodes=3", "--no-async-scheduling", "--recovery.standby-nodes=1")
    with serving(*flags, "--cluster.kind=local", *groups.FLAGS) as server:
        yield groups.Group(server)
        wait_ready(server)


def test_a_stand_by_takes_the_place_of_a_lost_follower(trio: groups.Group) -> None:
    server = trio.server
    (standby,) = {process.pid for process in server.followers()} - set(pids(server).values())
    streams = trio.start()
    streams.wait_until_each_began()
    blow = strike(server, 1)
    trio.assert_undisturbed(streams.finish())
    blow.wait_recovered()
    assert pids(server)[1] == standby


def test_an_idle_group_finds_a_hung_follower_before_the_next_request(trio: groups.Group) -> None:
    blow = strike(trio.server, 2, number=signal.SIGSTOP)
    blow.wait_recovered()
    trio.assert_undisturbed(trio.start().finish())


def test_two_followers_are_killed_while_idle(trio: groups.Group) -> None:
    blow = strike(trio.server, 0, 1)
    trio.assert_undisturbed(trio.start().finish())
    blow.wait_recovered()


def test_a_follower_hangs_while_a_long_prompt_is_read(trio: groups.Group) -> None:
    streams = trio.start_long()
    time.sleep(0.15)
    blow = strike(trio.server, 0, number=signal.SIGSTOP)
    assert streams.num_chunks == 0
    (answer,) = streams.finish()
    answer.assert_same(trio.long_expected[0])
    blow.wait_recovered()


def test_one_follower_is_killed_and_another_hangs_at_once(trio: groups.Group) -> None:
    streams = trio.start()
    streams.wait_until_each_began()
    hung = strike(trio.server, 0, number=signal.SIGSTOP)
    strike(trio.server, 2)
    trio.assert_undisturbed(streams.finish())
    wait_ready(trio.server)
    assert pids(trio.server)[0] != hung.pids_before[0]
    assert pids(trio.server)[1] == hung.pids_before[1]


def test_a_survivor_hangs_while_the_group_recovers(trio: groups.Group) -> None:
    streams = trio.start()
    streams.wait_until_each_began()
    first = strike(trio.server, 1)
    first.noticed_s()
    second = strike(trio.server, 2, number=signal.SIGSTOP)
    trio.assert_undisturbed(streams.finish())
    wait_ready(trio.server)
    after = pids(trio.server)
    assert after[0] == first.pids_before[0]
    assert after[2] != second.pids_before[2]
