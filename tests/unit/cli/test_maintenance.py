"""Commands that look after a running server, as far as they go without one."""

import pytest

from rufus_serve.cli import restart_follower, restart_group
from rufus_serve.cli.status import _lines
from rufus_serve.errors import ClusterError
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status
from rufus_serve.supervisor import orders


@pytest.mark.parametrize(("text", "meant"), [("2", (0, 2)), ("1/0", (1, 0))])
def test_a_follower_is_named_by_rank_or_by_group_and_rank(text, meant):
    assert restart_follower._follower(text) == meant


def test_a_group_is_named_by_number_or_all_are_meant():
    assert (restart_group._group("3"), restart_group._group("all")) == (3, restart_group.ALL)


def follower(group: int) -> FollowerStatus:
    return FollowerStatus(
        group=group, node_rank=0, host="h", pid=7, phase="ready", phase_s=3.0, load_count=1
    )


def status(*states: str, **more) -> Status:
    groups = tuple(
        GroupStatus(group=number, state=state, epoch=2, healthy=True, ready=state == "ready")
        for number, state in enumerate(states)
    )
    followers = tuple(follower(number) for number in range(len(states)))
    return Status(state=states[0], epoch=2, healthy=True, ready=True, groups=groups,
                  followers=followers, **more)  # fmt: skip


FOLLOWER = "  follower 0 on h, process 7: ready for 3 s, weights loaded 1 times"


def test_one_group_is_the_server():
    assert [*_lines(status("ready"))] == ["ready, epoch 2, 0 restarts ", FOLLOWER]


def test_several_groups_are_told_apart():
    lines = [*_lines(status("ready", "drained", cluster_detail="Ray is away for 3 s"))]
    assert lines == [
        "ready, 1 of 2 groups take requests",
        "  Ray is away for 3 s; followers go on, but none can be started",
        "group 0: ready, epoch 2, 0 restarts ",
        FOLLOWER,
        "group 1: drained, epoch 2, 0 restarts ",
        FOLLOWER,
    ]


def test_a_server_has_scaled_once_what_came_is_ready():
    assert not orders._has_scaled(status("ready", "starting"), 1, 2)
    assert orders._has_scaled(status("recovering", "ready"), 1, 2)
    assert not orders._has_scaled(status("ready", "draining"), 2, 1)
    assert orders._has_scaled(status("ready"), 2, 1)
    with pytest.raises(ClusterError, match="group 1 failed"):
        orders._has_scaled(status("ready", "failed"), 1, 2)
