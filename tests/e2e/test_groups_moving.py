"""Groups that are lost, drained and restarted in every way, under every kind of request."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.supervisor import orders
from tests.e2e.losses import Probe, engines_of, serving, status_of
from tests.e2e.moves import Groups
from tests.e2e.server import Server

pytestmark = pytest.mark.timeout(600)


PARAMS = ["--async-scheduling", "--no-async-scheduling", "--speculation.method=ngram"]


@pytest.fixture(scope="module", params=PARAMS)
def groups(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Groups]:
    with serving("--groups=2", request.param, *Groups.FLAGS, model=tiny_model) as server:
        yield Groups(server)


@pytest.mark.parametrize("which", [0, 1])
def test_streams_go_on_in_the_other_group_when_an_engine_is_killed(
    groups: Groups, which: int
) -> None:
    with Probe(groups.server) as probe:
        streams = groups.start_and_wait()
        engines_of(groups.server)[which].kill()
        groups.assert_undisturbed(streams)
    assert (probe.health, probe.ready) == ({200}, {200})
    groups.wait_all_ready()


def test_streams_go_on_when_both_groups_lose_their_followers(groups: Groups) -> None:
    streams = groups.start_and_wait()
    for group in (0, 1):
        groups.kill_follower(group)
    groups.assert_undisturbed(streams)


def test_streams_move_there_and_back(groups: Groups) -> None:
    streams = groups.start_and_wait()
    groups.kill_follower(0)
    groups.wait_all_ready()
    groups.kill_follower(1)
    groups.assert_undisturbed(streams)


def test_a_drained_group_has_no_request_and_serves_again_after_a_restart(groups: Groups) -> None:
    server = groups.server
    with Probe(server) as probe:
        streams = groups.start_and_wait()
        orders.drain_group(port=server.port, folder="", group=1, grace_s=60.0)
        groups.assert_undisturbed(streams)
        groups.assert_undisturbed(groups.start())
        status = status_of(server)
        assert [group.state for group in status.groups] == ["ready", "drained"]
        assert status.detail == "group 1 is out: drained"
        orders.restart_group(port=server.port, folder="", group=1, deadline_s=60.0)
    assert probe.ready == {200}
    assert [group.state for group in status_of(server).groups] == ["ready", "ready"]


def test_a_rolling_restart_loses_no_token_and_takes_one_group_out_at_a_time(
    groups: Groups,
) -> None:
    server = groups.server
    groups.wait_all_ready()
    before = [groups.follower(group) for group in (0, 1)]
    words = [Path(sys.executable).parent / "rufus-serve", "restart-group", "all"]
    with Probe(server) as probe:
        streams = groups.start_and_wait()
        rolling = subprocess.Popen([*words, f"--port={server.port}"], stdout=subprocess.PIPE)
        groups.assert_undisturbed(streams)
        while rolling.poll() is None:
            groups.assert_undisturbed(groups.start())
    said = rolling.communicate()[0].decode()
    assert [line[:15] for line in said.splitlines()] == ["group 0 is back", "group 1 is back"]
    assert probe.ready == {200}
    assert all(a[0] != b[0] for a, b in zip(before, map(groups.follower, (0, 1)), strict=True))


def test_metrics_count_no_token_twice(groups: Groups) -> None:
    groups.wait_all_ready()
    before = groups.server.metric("vllm:generation_tokens_total")
    streams = groups.start_and_wait()
    groups.kill_follower(1)
    answers = groups.assert_undisturbed(streams)
    counted = groups.server.metric("vllm:generation_tokens_total") - before
    assert counted == sum(answer.usage[1] for answer in answers if answer.usage)


def test_streams_do_not_wait_for_a_follower_that_loads_for_long(
    tiny_model: Path, tmp_path: Path
) -> None:
    slow, python = tmp_path / "slow", tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e {slow} ] && sleep 600\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    flags = ("--groups=2", f"--cluster.python={python}", *Groups.FLAGS)
    with serving(*flags, model=tiny_model) as server:
        groups = Groups(server)
        streams = groups.start_and_wait()
        slow.touch()
        groups.kill_follower(0)
        groups.assert_undisturbed(streams)
        groups.assert_undisturbed(groups.start())
        status = status_of(server)
        assert [group.ready for group in status.groups] == [False, True]
        assert (status.ready, status.healthy) == (True, True)


def test_without_room_elsewhere_streams_wait_for_their_own_group(tiny_model: Path) -> None:
    flags = [flag for flag in Groups.FLAGS if not flag.startswith("--max-num-seqs")]
    with serving("--groups=2", "--max-num-seqs=8", *flags, model=tiny_model) as server:
        groups = Groups(server)
        streams = groups.start_and_wait()
        groups.kill_follower(0)
        answers = groups.assert_undisturbed(streams)
    assert sum(len(answer.texts) for answer in answers) > 8, "they would have had room"


def test_every_groups_followers_wait_for_the_next_leader(tiny_model: Path) -> None:
    flags = ("--groups=2", "--recovery.on-leader-loss=wait", *Groups.FLAGS)
    with serving(*flags, model=tiny_model) as first:
        groups = Groups(first)
        groups.wait_all_ready()
        before = [groups.follower(group) for group in (0, 1)]
        orders.drain(port=first.port, folder="", grace_s=10.0, keep_followers=True)
        groups.server = second = Server(tiny_model, *flags, f"--port={first.port}")
        second.port = first.port
        try:
            second.wait_ready()
            groups.wait_all_ready()
            assert [groups.follower(group) for group in (0, 1)] == before
            groups.assert_undisturbed(groups.start())
            second.stop()
        finally:
            second.remove()


def test_of_a_group_of_two_followers_one_is_replaced_and_the_other_keeps_its_weights(
    tiny_model: Path,
) -> None:
    with serving("--groups=2", "--nodes=2", *Groups.FLAGS, model=tiny_model) as server:
        groups = Groups(server)
        streams = groups.start_and_wait()
        before = groups.pids()
        groups.kill_follower(1, rank=1)
        groups.assert_undisturbed(streams)
        groups.wait_all_ready()
        after = groups.pids()
        assert {where for where in before if after[where] != before[where]} == {(1, 1)}
        assert all(follower.load_count == 1 for follower in status_of(server).followers)
