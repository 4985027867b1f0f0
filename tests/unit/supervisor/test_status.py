import time

import pytest

from rufus_serve.cluster.base import ClusterHealth
from rufus_serve.errors import ModelError
from rufus_serve.protocol.messages import GroupStatus, LeaderProgress, Status
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor import status as module
from rufus_serve.supervisor.engine_watch import EngineWatch
from rufus_serve.supervisor.group_state import GroupState

HEALTHY = ClusterHealth()


@pytest.fixture
def state() -> GroupState:
    state = GroupState(ev.GroupSettings(nodes=1, deadline_s=60.0), now=time.monotonic())
    state.start((), time.monotonic())
    return state


@pytest.fixture
def engine() -> EngineWatch:
    return EngineWatch()


def group_of(state, engine, *, number=0, outside=""):
    return module.group_status(state, engine, number=number, engine_silent_s=10.0, outside=outside)


def status_of(state, engine, *, draining=False, serving=True, cluster=HEALTHY):
    followers = tuple(module.followers_of(state, engine, number=0))
    return module.status_of(
        [group_of(state, engine)], followers, draining=draining, serving=serving, cluster=cluster
    )


def serve(state: GroupState) -> None:
    state.phase, state.phase_since, state.epoch = ev.GroupPhase.READY, time.monotonic(), 3


def progress(engine: EngineWatch, *, age_s: float) -> None:
    message = LeaderProgress(steps_done=1, steps_in_flight=0)
    engine.took_progress(message, time.monotonic() - age_s, {})


def test_a_group_that_starts_is_healthy_and_not_ready(state, engine):
    status = status_of(state, engine, draining=False, serving=False)
    assert (status.state, status.healthy, status.ready) == ("starting", True, False)
    assert [follower.phase for follower in status.followers] == ["waiting for a node"]


def test_a_group_is_ready_once_the_leader_serves(state, engine):
    serve(state)
    progress(engine, age_s=0.1)
    assert not status_of(state, engine, draining=False, serving=False).ready
    status = status_of(state, engine, draining=False, serving=True)
    assert (status.state, status.epoch, status.ready, status.detail) == ("ready", 3, True, "")


def test_the_last_recovery_is_timed(state, engine):
    assert status_of(state, engine, draining=False, serving=True).recovery_s == 0.0
    state.recovery_time.note(ev.GroupPhase.RECOVERING, 4.5)
    assert status_of(state, engine, draining=False, serving=True).recovery_s == 4.5


def test_a_group_is_ready_though_ray_is_away(state, engine):
    serve(state)
    progress(engine, age_s=0.1)
    away = ClusterHealth(up=False, restarts=2, detail="Ray is away")
    status = status_of(state, engine, draining=False, serving=True, cluster=away)
    assert (status.ready, status.cluster_up, status.cluster_restarts) == (True, False, 2)
    assert status.cluster_detail == "Ray is away"


def test_a_draining_group_is_healthy_and_not_ready(state, engine):
    serve(state)
    status = status_of(state, engine, draining=True, serving=True)
    assert (status.state, status.healthy, status.ready) == ("draining", True, False)


def test_a_recovering_group_is_healthy_until_its_deadline(state, engine):
    state.phase, state.phase_since = ev.GroupPhase.RECOVERING, time.monotonic() - 59.0
    assert status_of(state, engine, draining=False, serving=True).healthy
    assert not status_of(state, engine, draining=False, serving=True).ready
    state.phase_since = time.monotonic() - 61.0
    assert not status_of(state, engine, draining=False, serving=True).healthy


def test_a_silent_engine_is_unhealthy_and_says_for_how_long(state, engine):
    serve(state)
    progress(engine, age_s=12.0)
    status = status_of(state, engine, draining=False, serving=True)
    assert (status.healthy, status.ready) == (False, False)
    assert status.detail == status.groups[0].engine_fault == "the engine has been silent for 12 s"


def test_a_failed_group_tells_why(state, engine):
    failed = ev.Failed(
        follower_id=next(iter(state.members)), reason="bad checkpoint", kind=ModelError
    )
    state.handle(failed, time.monotonic())
    status = status_of(state, engine, draining=False, serving=False)
    assert (status.state, status.healthy) == ("failed", False)
    assert "bad checkpoint" in status.detail


def reports(
    engine: EngineWatch, *ages_s: float, done: int = 5, running: int = 2, in_flight: int = 0
):
    for age_s in ages_s:
        message = LeaderProgress(steps_done=done, steps_in_flight=in_flight, num_running=running)
        engine.took_progress(message, time.monotonic() - age_s, {})


def test_an_engine_that_reports_but_does_no_step_is_unhealthy(state, engine):
    serve(state)
    state.phase_since -= 60.0
    reports(engine, 12.0, 6.0, 0.0)
    status = status_of(state, engine, draining=False, serving=True)
    assert (status.healthy, status.ready) == (False, False)
    assert status.detail == "the engine has done no step for 12 s, though 2 requests are running"
    reports(engine, 0.0, done=6)
    assert status_of(state, engine, draining=False, serving=True).healthy


@pytest.mark.parametrize("change", [{"running": 0}, {"in_flight": 1}])
def test_an_engine_without_work_or_with_a_step_under_way_is_healthy(state, engine, change):
    serve(state)
    state.phase_since -= 60.0
    reports(engine, 12.0, 0.0, **change)
    assert status_of(state, engine, draining=False, serving=True).healthy


def test_an_engine_may_stand_still_while_there_is_no_group(state, engine):
    serve(state)
    reports(engine, 30.0, 0.0)
    assert status_of(state, engine, draining=False, serving=True).healthy


def test_a_group_out_of_rotation_is_healthy_and_not_ready(state, engine):
    serve(state)
    group = group_of(state, engine, number=1, outside="drained")
    assert (group.state, group.healthy, group.ready) == ("drained", True, False)
    state.phase = ev.GroupPhase.RECOVERING
    assert group_of(state, engine, outside="drained").state == "recovering"


def several(*states: str) -> Status:
    groups = [
        GroupStatus(
            group=number,
            state=each,
            epoch=number,
            healthy=each != "failed",
            ready=each == "ready",
            restarts=1,
            detail="no node" * (each == "failed"),
        )
        for number, each in enumerate(states)
    ]
    return module.status_of(groups, (), draining=False, serving=True, cluster=HEALTHY)


@pytest.mark.parametrize(
    ("states", "state", "ready", "healthy", "detail"),
    [
        (("ready", "ready"), "ready", True, True, ""),
        (("recovering", "ready"), "ready", True, True, "group 0 is out: recovering"),
        (("failed", "ready"), "ready", True, True, "group 0 is out: no node"),
        (("failed", "starting"), "starting", False, True,
         "group 0 is out: no node; group 1 is out: starting"),
        (("failed", "failed"), "failed", False, False,
         "group 0 is out: no node; group 1 is out: no node"),
    ],
)  # fmt: skip
def test_a_server_is_as_ready_as_the_best_of_its_groups(states, state, ready, healthy, detail):
    status = several(*states)
    assert (status.state, status.ready, status.healthy) == (state, ready, healthy)
    assert (status.detail, status.restarts, status.epoch) == (detail, 2, 1)


def test_a_follower_that_was_replaced_says_how_often(state, engine):
    (member,) = state.members.values()
    state.handle(ev.Lost(follower_id=member.follower_id, reason="killed"), time.monotonic())
    (follower,) = status_of(state, engine, draining=False, serving=True).followers
    assert follower.restarts == 1


def turns(engine: EngineWatch, *ages_and_turns: tuple[float, int], in_flight: int = 0) -> None:
    for age_s, count in ages_and_turns:
        message = LeaderProgress(steps_done=5, steps_in_flight=in_flight, turns=count)
        engine.took_progress(message, time.monotonic() - age_s, {})


def test_an_idle_engine_whose_main_loop_stands_still_is_unhealthy(state, engine):
    serve(state)
    state.phase_since -= 60.0
    turns(engine, (12.0, 7), (6.0, 7), (0.0, 7))
    status = status_of(state, engine, draining=False, serving=True)
    assert (status.healthy, status.ready) == (False, False)
    assert status.detail == "the engine's main loop has not turned for 12 s"
    turns(engine, (0.0, 8))
    assert status_of(state, engine, draining=False, serving=True).healthy


@pytest.mark.parametrize(("count", "in_flight"), [(0, 0), (7, 1)])
def test_a_main_loop_that_nobody_asked_yet_or_that_waits_for_a_step_is_healthy(
    state, engine, count, in_flight
):
    serve(state)
    state.phase_since -= 60.0
    turns(engine, (12.0, count), (0.0, count), in_flight=in_flight)
    assert status_of(state, engine, draining=False, serving=True).healthy
