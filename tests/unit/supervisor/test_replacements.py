import pytest

from rufus_serve.supervisor.replacements import Replacements


def test_ranks_of_one_loss_start_together_and_are_told_once():
    replacements = Replacements(backoff_s=1.0, max_backoff_s=8.0)
    replacements.await_start([0, 2], 10.0)
    assert replacements.due(10.0) == [0, 2]
    assert replacements.due(99.0) == []


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_each_loss_in_a_row_waits_twice_as_long_up_to_the_bound(num_ranks):
    replacements, waits = Replacements(backoff_s=1.0, max_backoff_s=4.0), []
    for _ in range(5):
        replacements.await_start(range(num_ranks), 10.0)
        waits.append(replacements.pending[-1][0] - 10.0)
        replacements.due(99.0)
    assert waits == [0.0, 1.0, 2.0, 4.0, 4.0]
    replacements.forgive()
    replacements.await_start([0], 10.0)
    assert replacements.due(10.0) == [0]


def test_nothing_to_start_is_no_loss():
    replacements = Replacements(backoff_s=1.0, max_backoff_s=4.0)
    replacements.await_start([], 10.0)
    replacements.await_start([1], 10.0)
    assert replacements.due(10.0) == [1]
