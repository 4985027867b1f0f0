from typing import Any

import msgspec

from rufus_serve.leader.api.overview.timeline import Timeline
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status


def status(state: str, epoch: int, *pids: int, number: int = 0, **more: Any) -> Status:
    followers = tuple(
        FollowerStatus(node_rank=rank, host="h", pid=pid, phase="ready", phase_s=1.0, group=number)
        for rank, pid in enumerate(pids)
    )
    ready = state == "ready"
    group = GroupStatus(group=number, state=state, epoch=epoch, healthy=ready, ready=ready, **more)
    return Status(
        state=state, epoch=epoch, healthy=ready, ready=ready, followers=followers, groups=(group,)
    )


def told(*seen: Status) -> list[str]:
    timeline = Timeline()
    for each in seen:
        timeline.take(each)
    return [moment.what for moment in timeline.moments()]


def test_a_recovery_is_told_from_loss_to_epoch() -> None:
    assert told(
        status("ready", 1, 10, 11),
        status("ready", 1, 10, 11),
        status("recovering", 1, 10, 0),
        status("recovering", 1, 10, 12),
        status("ready", 2, 10, 12, recovery_s=2.34, recoveries=1),
    ) == [
        "ready, epoch 2, recovered in 2.3 s",
        "follower 1 was replaced on h",
        "recovering, epoch 1",
        "ready, epoch 1",
    ]


def test_a_recovery_too_short_to_be_seen_is_told_by_its_epoch_and_process() -> None:
    assert told(
        status("ready", 1, 10, 11), status("ready", 2, 10, 12, recovery_s=0.4, recoveries=1)
    ) == [
        "ready, epoch 2, recovered in 0.4 s",
        "follower 1 was replaced on h",
        "ready, epoch 1",
    ]


def test_why_a_group_failed_is_told_and_old_moments_are_forgotten() -> None:
    first = told(status("ready", 1), status("failed", 1, detail="spent"))[0]
    assert first == "failed, epoch 1: spent"
    assert len(told(*(status("ready", epoch) for epoch in range(1, 300)))) == 100


def test_every_group_has_moments_of_its_own() -> None:
    timeline = Timeline()
    timeline.take(status("ready", 1, 10, number=1))
    timeline.take(status("recovering", 1, 10, number=1))
    assert [(moment.group, moment.what) for moment in timeline.moments()] == [
        (1, "recovering, epoch 1"), (1, "ready, epoch 1"),
    ]  # fmt: skip


def test_a_group_that_goes_is_told_and_the_next_of_its_number_replaces_nobody() -> None:
    first, both = status("ready", 1, 10), status("ready", 1, 11, number=1)
    two = msgspec.structs.replace(
        first, groups=first.groups + both.groups, followers=first.followers + both.followers
    )
    again = status("ready", 2, 12, number=1)
    anew = msgspec.structs.replace(
        first, groups=first.groups + again.groups, followers=first.followers + again.followers
    )
    assert told(two, first, anew) == [
        "ready, epoch 2",
        "gone: the server was scaled down",
        "ready, epoch 1",
        "ready, epoch 1",
    ]
