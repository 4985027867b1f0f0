import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.plan.traffic.host import Host


def ends(works):
    """When each of (start, durations) is done."""
    env, found = simpy.Environment(), {}
    host = Host(env)

    def one(index, start_s, durations_s):
        yield env.timeout(start_s)
        yield from host.work(durations_s)
        found[index] = env.now

    for index, work in enumerate(works):
        env.process(one(index, *work))
    env.run()
    return [found[index] for index in range(len(works))]


def test_groups_with_machines_of_their_own_do_not_notice_each_other():
    assert ends([(0.0, [1.0]), (0.5, [1.0])]) == [1.0, 1.5]


def test_work_is_slowed_only_while_another_group_is_at_it():
    # Alone until 1, together until the first has done the other half, alone again.
    assert ends([(0.0, [2.0, 3.0]), (1.0, [2.0, 3.0])]) == pytest.approx([2.5, 3.5])


def test_each_work_is_slowed_by_its_own_share():
    assert ends([(0.0, [1.0, 1.0]), (0.0, [1.0, 4.0])]) == pytest.approx([1.0, 1.75])


def test_what_the_most_groups_take_counts_for_more_as_well():
    assert ends([(0.0, [1.0, 1.5])] * 3) == pytest.approx([1.5] * 3)


def test_work_that_takes_no_time_is_done_at_once():
    assert ends([(0.0, [0.0, 0.0])] * 3) == [0.0] * 3


def test_interrupted_work_slows_no_one_any_more():
    env = simpy.Environment()
    host, ended = Host(env), []

    def interrupted():
        with pytest.raises(simpy.Interrupt):
            yield from host.work([100.0, 100.0])

    def other():
        yield from host.work([2.0, 4.0])
        ended.append(env.now)

    def interrupt(victim):
        yield env.timeout(1.0)
        victim.interrupt()

    victim = env.process(interrupted())
    env.process(other())
    env.process(interrupt(victim))
    env.run(until=10.0)
    assert ended == [pytest.approx(2.5)]


@given(works=st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 5)), min_size=1, max_size=8))
def test_sharing_one_core_evenly_loses_and_gains_no_time(works):
    # With n groups each at 1/n of its pace, the core is as busy as with one queue.
    now = 0.0
    for start_s, seconds in sorted(works):
        now = max(now, start_s) + seconds
    counts = range(1, max(2, len(works)) + 1)
    shared = [(start_s, [count * seconds for count in counts]) for start_s, seconds in works]
    assert max(ends(shared)) == pytest.approx(now)
