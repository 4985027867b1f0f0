import pytest
from group_history import GroupHistory

from rufus_serve.supervisor import group_events as ev


def history_of(**settings):
    history = GroupHistory(**settings)
    history.wait(10.0)
    return history.serve()


def test_a_recovery_is_timed_from_the_loss_until_the_group_is_ready():
    history = history_of()
    assert history.state.recovery_time.last_s == 0.0
    history.lose(1)
    history.wait(4.0)
    history.advance()
    assert history.state.recovery_time.last_s == pytest.approx(4.0)


def test_the_deadline_is_at_least_twice_what_the_last_start_or_recovery_took():
    history = history_of(deadline_s=5.0, deadline_follows_start=True)
    history.lose(1)
    history.wait(19.0)
    assert history.state.healthy(history.now)
    history.wait(2.0)
    assert not history.state.healthy(history.now)
    history.advance()
    assert history.state.recovery_time.deadline_s == pytest.approx(42.0)


def test_a_deadline_that_was_given_stays():
    history = history_of(deadline_s=5.0)
    history.lose(1)
    history.wait(6.0)
    assert history.state.phase is ev.GroupPhase.RECOVERING
    assert not history.state.healthy(history.now)
