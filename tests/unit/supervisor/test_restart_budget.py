from rufus_serve.supervisor.restart_budget import PROGRESS_STEPS, RestartBudget


def budget(max_restarts: int = 2) -> RestartBudget:
    return RestartBudget(max_restarts=max_restarts, window_s=600.0)


def test_any_number_of_losses_is_survived_as_long_as_steps_are_done_in_between():
    spent, steps = budget(), 0
    for loss in range(100):
        assert spent.spend("killed", float(loss)) == ""
        steps += PROGRESS_STEPS
        spent.took_steps(steps)
    assert spent.total == 100


def test_a_loop_without_progress_is_told_by_its_first_and_last_reason():
    spent = budget()
    spent.took_steps(1000)
    for reason in ("a broken link", "a cold"):
        assert spent.spend(reason, 0.0) == ""
    refusal = spent.spend("out of memory", 1.0)
    assert "2 restarts without progress in 600 s" in refusal
    assert "first: a broken link; last: out of memory" in refusal


def test_a_few_steps_are_no_progress():
    spent = budget(1)
    spent.spend("killed", 0.0)
    spent.took_steps(PROGRESS_STEPS - 1)
    assert spent.spend("killed", 1.0)


def test_another_engine_counts_its_steps_anew():
    spent = budget(1)
    spent.took_steps(1000)
    spent.spend("killed", 0.0)
    spent.took_steps(1)
    spent.took_steps(PROGRESS_STEPS)
    assert spent.spend("killed", 1.0) == ""


def test_restarts_leave_the_window():
    spent = budget(1)
    spent.spend("killed", 0.0)
    assert spent.spend("killed", 601.0) == ""


def test_no_restart_at_all_may_be_asked_for():
    spent = budget(0)
    spent.took_steps(1000)
    assert spent.spend("killed", 0.0)
