from rufus_serve.protocol.messages import LeaderProgress
from rufus_serve.supervisor.engine_watch import EngineWatch

PROGRESS = LeaderProgress(steps_done=5, steps_in_flight=0)


def test_a_new_engine_starts_without_progress_and_without_fault():
    watch = EngineWatch()
    watch.took_progress(PROGRESS, 7.0, {})
    assert (watch.progress, watch.progress_at) == (PROGRESS, 7.0)
    assert watch.fault(18.0, 10.0, ready_since=0.0) == "the engine has been silent for 11 s"
    watch.forget()
    assert watch.progress is None
    assert watch.fault(18.0, 10.0, ready_since=0.0) == ""


def test_an_engine_without_a_group_may_stand_still_but_not_be_silent():
    watch = EngineWatch()
    running = LeaderProgress(steps_done=5, steps_in_flight=0, num_running=3)
    for now in (0.0, 12.0):
        watch.took_progress(running, now, {})
    assert watch.fault(13.0, 10.0, ready_since=None) == ""
    assert "has done no step for 12 s" in watch.fault(13.0, 10.0, ready_since=0.0)
    assert "silent for 11 s" in watch.fault(23.0, 10.0, ready_since=None)
