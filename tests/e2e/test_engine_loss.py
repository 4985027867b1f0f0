"""The engine process dies: its requests go on in the next one, over the same followers."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.losses import Probe, engine_of, pids, serving, status_of, strike, wait_ready
from tests.e2e.recorded import FLAGS, Recorded

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def recorded(tiny_model: Path) -> Iterator[Recorded]:
    with serving("--nodes=2", *FLAGS, model=tiny_model) as server:
        yield Recorded(server)


def lose_engine(recorded: Recorded, number: int) -> float:
    """The longest pause of a stream whose engine got a signal."""
    server = recorded.server
    with Probe(server) as probe:
        streams = recorded.start_and_wait()
        before, followers, epoch = engine_of(server).pid, pids(server), status_of(server).epoch
        engine_of(server).send_signal(number)
        answers = recorded.assert_undisturbed(streams)
    status = status_of(server)
    assert engine_of(server).pid != before
    assert (pids(server), status.epoch) == (followers, epoch + 1)
    assert all(follower.load_count == 1 for follower in status.followers)
    assert probe.health == {200}
    return max(answer.longest_pause_s for answer in answers)


def test_every_kind_of_request_goes_on_when_the_engine_is_killed(recorded: Recorded) -> None:
    longest_s = lose_engine(recorded, signal.SIGKILL)
    sys.stdout.write(f"longest pause: {longest_s:.2f} s\n")


def test_an_engine_that_is_told_to_end_takes_no_request_with_it(recorded: Recorded) -> None:
    lose_engine(recorded, signal.SIGTERM)


def test_every_kind_of_request_goes_on_when_the_engine_hangs(recorded: Recorded) -> None:
    streams = recorded.start_and_wait()
    hung = engine_of(recorded.server)
    hung.send_signal(signal.SIGSTOP)
    recorded.assert_undisturbed(streams)
    assert engine_of(recorded.server).pid != hung.pid
    assert "the engine has been silent for" in recorded.server.log


def test_streams_go_on_when_the_engine_dies_twice_and_a_follower_with_it(
    recorded: Recorded,
) -> None:
    streams = recorded.start_and_wait()
    engine_of(recorded.server).kill()
    strike(recorded.server, 1).seconds_until(r"^epoch \d+ ready")
    engine_of(recorded.server).kill()
    recorded.assert_undisturbed(streams)


def test_an_idle_server_takes_the_next_request_after_its_engine_died(recorded: Recorded) -> None:
    wait_ready(recorded.server)
    engine_of(recorded.server).kill()
    recorded.assert_undisturbed(recorded.start())
    assert re.search(r"engine process \d+ was killed by signal 9", recorded.server.log)


def test_metrics_count_no_token_twice(recorded: Recorded) -> None:
    before = recorded.server.metric("vllm:generation_tokens_total")
    streams = recorded.start_and_wait()
    engine_of(recorded.server).kill()
    answers = recorded.assert_undisturbed(streams)
    counted = recorded.server.metric("vllm:generation_tokens_total") - before
    assert counted == sum(answer.usage[1] for answer in answers if answer.usage)


def test_streams_go_on_without_async_scheduling_as_well(tiny_model: Path) -> None:
    with serving("--nodes=1", "--no-async-scheduling", *FLAGS, model=tiny_model) as server:
        lose_engine(Recorded(server), signal.SIGKILL)
