import pytest
from group_history import GroupHistory, of

from rufus_serve.errors import RestartBudgetSpent
from rufus_serve.supervisor import group_events as ev

Phase = ev.GroupPhase


def test_a_second_loss_during_recovery_is_not_announced_but_replaced_after_the_backoff():
    history = GroupHistory(backoff_s=0.2).serve()
    history.lose(1)
    actions = history.lose(0)
    assert not of(ev.AnnounceLost, actions)
    assert not of(ev.StartFollower, actions)
    assert [start.node_rank for start in of(ev.StartFollower, history.wait(0.3))] == [0]


def test_the_backoff_doubles_up_to_its_bound_and_is_forgotten_once_ready():
    history = GroupHistory(backoff_s=1.0, max_backoff_s=4.0, max_restarts=99).serve()
    delays = []
    for _ in range(6):
        history.lose(1)
        waited = 0.0
        while 1 not in history.state.by_rank():
            history.wait(0.1)
            waited += 0.1
        delays.append(round(waited, 1))
    assert delays == pytest.approx([0.0, 1.0, 2.0, 4.0, 4.0, 4.0], abs=0.11)
    history.advance()
    assert of(ev.StartFollower, history.lose(1))


def test_one_loss_more_than_the_budget_fails_the_group_for_good():
    history = GroupHistory(max_restarts=2).serve()
    for reason in ("a broken link", "a cold"):
        history.lose(1, reason)
        history.wait(1.0)
        history.advance()
    (failed,) = of(ev.FailGroup, history.lose(1, "out of memory"))
    assert failed.kind is RestartBudgetSpent
    assert "2 restarts without progress in 600 s" in failed.reason
    assert "first: follower 1 on h: a broken link; last: follower 1" in failed.reason
    assert failed.reason.endswith("out of memory")
    assert history.state.phase is Phase.FAILED


def test_the_budget_refills_as_restarts_leave_the_window():
    history = GroupHistory(max_restarts=1, window_s=10.0).serve()
    history.lose(1)
    history.advance()
    history.wait(10.5)
    history.lose(1)
    assert history.state.phase is Phase.RECOVERING


def test_a_suspicion_followed_by_the_loss_it_was_about_costs_one_restart():
    history = GroupHistory().serve()
    history.happen(ev.EpochLost(epoch=1, reason="connection closed"))
    history.wait(0.1)
    history.lose(1)
    assert not of(ev.Form, history.wait(1.0))
    history.advance()
    assert history.state.phase is Phase.READY
    assert (history.state.epoch, history.state.total_restarts) == (2, 1)


def test_a_poison_step_spends_the_budget():
    history = GroupHistory(max_restarts=3).serve()
    while history.state.phase is not Phase.FAILED:
        history.happen(ev.EpochLost(epoch=history.state.epoch, reason="step 9 failed"))
        history.wait(0.5)
        history.advance()
    assert history.state.total_restarts == 3
    assert "step 9 failed" in history.state.failure


def test_a_phase_past_its_deadline_during_recovery_costs_a_restart_instead():
    history = GroupHistory(load_s=3.0).serve()
    history.lose(1)
    slow = history.id_of(1)
    history.join(slow)
    actions = history.wait(3.2)
    assert ev.KillFollower(follower_id=slow) in actions
    assert history.state.phase is Phase.RECOVERING


def test_a_restart_on_request_costs_no_budget():
    history = GroupHistory(max_restarts=0).serve()
    old = history.id_of(1)
    actions = history.happen(ev.RestartAsked(node_ranks=(1,)))
    assert ev.KillFollower(follower_id=old) in actions
    history.advance()
    assert history.state.phase is Phase.READY
    assert history.state.total_restarts == 0


def test_restarts_are_counted_by_the_rank_that_was_lost():
    history = GroupHistory().serve()
    history.lose(1)
    history.advance()
    history.lose(1)
    assert dict(history.state.restarts_of_rank) == {1: 2}


def test_a_group_that_worked_since_its_last_loss_has_its_budget_back():
    history = GroupHistory(max_restarts=1).serve()
    for loss in range(1, 6):
        history.lose(1)
        history.advance()
        history.happen(ev.Stepped(steps_done=20 * loss))
        assert history.state.phase is Phase.READY
    history.lose(1)
    history.advance()
    history.lose(1)
    assert history.state.phase is Phase.FAILED
