import msgspec
import pytest

from rufus_serve.leader.api.overview import board as under_test
from rufus_serve.leader.api.overview.board import Board
from rufus_serve.leader.api.overview.readings import Sample
from rufus_serve.leader.api.overview.views import Overview
from rufus_serve.leader.step_counts import Durations, Filled, StepCounts
from rufus_serve.protocol.messages import FollowerStatus, GroupStatus, Status

FOLLOWERS = tuple(
    FollowerStatus(node_rank=rank, host="h", pid=1, phase="ready", phase_s=1.0, step_s=step_s)
    for rank, step_s in enumerate((0.01, 0.03))
)
GROUPS = tuple(
    GroupStatus(group=number, state="ready", epoch=3, healthy=True, ready=True) for number in (0, 1)
)
READY = Status(state="ready", epoch=3, healthy=True, ready=True, followers=FOLLOWERS, groups=GROUPS)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(under_test.time, "monotonic", lambda: self.now)


def counts(steps: int) -> StepCounts:
    times = Durations()
    for _ in range(steps):
        times.add(0.02)
    return StepCounts(
        steps={"decode": times}, filled={"decode": Filled(3 * steps, 4 * steps)},
        parts_s={"wait": 0.015 * steps}, sent_bytes=steps,
    )  # fmt: skip


def test_nothing_is_told_before_the_supervisor_spoke() -> None:
    board = Board("m", num_open=lambda: 0, counts=dict, read=lambda at: Sample(at, {}, {}))
    assert board.overview() is None


def test_an_overview_is_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(monkeypatch), [10]
    board = Board(
        "m", num_open=lambda: 5, counts=lambda: {0: counts(done[0])},
        read=lambda at: Sample(at, {("num_requests_running", "0"): 2.0}, {}),
    )  # fmt: skip
    board.take(READY)
    board.overview()
    clock.now, done[0] = clock.now + 1, 14
    found = board.overview()
    assert found is not None
    group, idle = found.groups
    assert (found.model, found.state, found.load.open_sequences) == ("m", "ready", 5)
    assert (group.epoch, group.running) == (3, 2)
    assert group.step_ms == pytest.approx({"decode": 20.0})
    assert group.parts_ms == pytest.approx({"wait": 15.0})
    assert group.padding == pytest.approx({"decode": 0.25})
    assert group.skew_ms == pytest.approx(20.0)
    assert (idle.group, idle.running, idle.step_ms) == (1, 0, {})
    assert found.timeline[0].what == "ready, epoch 3"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Overview) == found


def test_another_engine_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(monkeypatch), [50]
    board = Board(
        "m", num_open=lambda: 0, counts=lambda: {0: counts(done[0])},
        read=lambda at: Sample(at, {}, {}),
    )  # fmt: skip
    board.take(READY)
    board.overview()
    clock.now, done[0] = clock.now + 1, 2
    found = board.overview()
    assert found is not None
    assert found.groups[0].step_ms == pytest.approx({"decode": 20.0})


def test_many_watchers_share_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    taken: list[float] = []

    def read(at: float) -> Sample:
        taken.append(at)
        return Sample(at, {}, {})

    board = Board("m", num_open=lambda: 0, counts=dict, read=read)
    board.take(READY)
    for _ in range(10):
        board.overview()
    assert len(taken) == 1


def test_requests_that_went_to_other_groups_are_told() -> None:
    board = Board("m", num_open=lambda: 0, counts=dict, read=lambda at: Sample(at, {}, {}))
    board.take(READY)
    board.moved(1, 3)
    found = board.overview()
    assert found is not None
    first = found.timeline[0]
    assert (first.group, first.what) == (
        1, "out of rotation, its 3 requests went to other groups",
    )  # fmt: skip
