"""Two groups behind one endpoint: what one of them loses goes on in the other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.losses import Probe, serving, status_of
from tests.e2e.moves import Groups

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def groups(tiny_model: Path) -> Iterator[Groups]:
    flags = ("--groups=2", *Groups.FLAGS, "--cluster.kind=ray")
    with serving(*flags, model=tiny_model) as server:
        yield Groups(server)


def test_every_kind_of_request_goes_on_when_a_groups_follower_is_killed(groups: Groups) -> None:
    with Probe(groups.server) as probe:
        streams = groups.start_and_wait()
        before = groups.follower(1)
        groups.kill_follower(0)
        answers = groups.assert_undisturbed(streams)
        status = status_of(groups.server)
    assert (probe.health, probe.ready) == ({200}, {200})
    assert groups.follower(1) == before
    assert {group.group: group.restarts for group in status.groups} == {0: 1, 1: 0}
    longest_s = max(answer.longest_pause_s for answer in answers)
    sys.stdout.write(f"longest pause: {longest_s:.2f} s\n")


def test_both_groups_serve_and_metrics_tell_them_apart(groups: Groups) -> None:
    groups.wait_all_ready()
    groups.assert_undisturbed(groups.start())
    text = groups.server.get("/metrics")[1]
    for group in ("0", "1"):
        assert groups.tokens_of(text, group) > 0
        assert f'rufus_group_state{{group="{group}",state="ready"}} 1.0' in text
