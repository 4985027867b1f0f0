import dataclasses
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.plan.traffic.made import RoundTimes, asked, fleet

from rufus_serve.plan.traffic import simulation
from rufus_serve.plan.traffic.demand import Arrival, Lengths, Load
from rufus_serve.plan.traffic.measures import measure
from rufus_serve.plan.traffic.simulation import Loss, simulate
from rufus_serve.routing import Router


def poisson(rate, count, *, prompt=100, output=1):
    return Load(
        rate=rate,
        prompt=Lengths("uniform", prompt, prompt),
        output=Lengths("uniform", output, output),
        max_model_len=10_000,
    ).arrivals(share=1.0, count=count)


def mean_wait_s(outcome, service_s):
    waits = [job.last_s - job.arrival.at_s - service_s for job in outcome.jobs]
    return sum(waits) / len(waits)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_server_of_fixed_time_waits_as_the_md1_formula_says(load):
    service_s = 0.1
    outcome = simulate(fleet(max_num_seqs=1), poisson(load / service_s, 8_000))
    expected = load * service_s / (2 * (1 - load))
    assert mean_wait_s(outcome, service_s) == pytest.approx(expected, rel=0.08)


def test_the_busy_share_is_the_load():
    outcome = simulate(fleet(max_num_seqs=1), poisson(6.0, 10_000))
    assert outcome.busy_s / outcome.end_s == pytest.approx(0.6, rel=0.03)


def test_a_full_batch_brings_its_rows_each_decode():
    arrivals = [asked(prompt=16, output=1000) for _ in range(4)]
    outcome = simulate(fleet(times=RoundTimes(per_token=0.0), num_blocks=400), arrivals)
    assert outcome.end_s == pytest.approx(999 * 0.010, abs=0.03)
    assert measure(outcome, num_groups=1).tpot_ms["p99"] == pytest.approx(10.0)


def test_a_request_that_comes_during_a_step_waits_for_the_one_planned_behind_it():
    arrivals = [asked(prompt=100, output=9), asked(0.05, prompt=100, output=1)]
    for steps_ahead, expected in ((0, 0.100 + 0.110), (1, 0.100 + 0.010 + 0.110)):
        outcome = simulate(fleet(steps_ahead=steps_ahead), arrivals)
        (late,) = [job for job in outcome.jobs if job.arrival.at_s]
        assert late.first_s == pytest.approx(expected)


def test_what_the_front_takes_is_part_of_every_latency():
    plain = fleet()
    slow = type(plain)(num_groups=1, batching=plain.batching, times=plain.times, front_s=0.02)
    first, second = (simulate(each, [asked()]).jobs[0] for each in (plain, slow))
    assert second.first_s - first.first_s == pytest.approx(0.02)


def test_groups_on_one_machine_slow_each_other_while_both_are_at_work():
    arrivals = [asked(prompt=16, output=200), asked(prompt=16, output=100)]
    own = fleet(2, times=RoundTimes(per_token=0.0))
    shared = dataclasses.replace(own, shared_times=(RoundTimes(per_token=0.0, decode=15.0),))
    apart, together = (
        sorted(job.last_s for job in simulate(each, arrivals).jobs) for each in (own, shared)
    )
    assert apart == pytest.approx([0.99, 1.99])
    assert together == pytest.approx([0.99 * 1.5, 0.99 * 1.5 + 1.0])


@settings(max_examples=25, deadline=None)
@given(
    num_groups=st.integers(1, 4),
    blocks=st.integers(12, 60),
    caches=st.booleans(),
    segmented=st.booleans(),
    lost_at=st.floats(0.0, 3.0),
    shapes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 30)), min_size=1, max_size=40),
)
def test_every_request_ends_once_with_all_its_tokens(
    num_groups, blocks, caches, segmented, lost_at, shapes
):
    arrivals = [
        asked(0.05 * index, prompt=prompt, output=output, first_id=index % 3)
        for index, (prompt, output) in enumerate(shapes)
    ]
    losses = [Loss(group=0, at_s=lost_at, recover_s=1.0)]
    rules = {"prefix_caching": caches, "segmented_prefill": segmented, "steps_ahead": 1}
    if not segmented:  # as the configuration demands: what is recomputed fits one step too
        rules |= {"largest_prefill": 256, "prefill_tokens_per_step": 256}
    outcome = simulate(fleet(num_groups, losses=losses, num_blocks=blocks, **rules), arrivals)
    assert sorted(int(job.name) for job in outcome.jobs) == list(range(len(arrivals)))
    assert all(job.delivered == job.arrival.num_output for job in outcome.jobs)
    assert sum(outcome.tokens_by_second.values()) == sum(output for _, output in shapes)


def test_more_groups_are_never_slower():
    arrivals = poisson(40.0, 800, output=5)
    p99s = [
        measure(simulate(fleet(number), arrivals), num_groups=number).ttft_ms["p99"]
        for number in (3, 5, 8, 12)
    ]
    assert all(later <= sooner for sooner, later in itertools.pairwise(p99s))


def test_the_same_load_gives_the_same_outcome():
    runs = [simulate(fleet(2), poisson(10.0, 300, output=5)) for _ in range(2)]
    first, second = ([(job.name, job.last_s) for job in run.jobs] for run in runs)
    assert first == second


def test_a_group_without_another_pauses_its_streams_until_it_is_back():
    losses = [Loss(group=0, at_s=0.2, recover_s=30.0)]
    (job,) = simulate(fleet(losses=losses), [asked(output=50)]).jobs
    assert job.longest_pause_s == pytest.approx(30.0, abs=0.2)
    assert job.num_moves == 0


def test_a_lost_groups_stream_goes_on_in_another_one_after_a_prefill():
    losses = [Loss(group=0, at_s=0.2, recover_s=30.0)]
    (job,) = simulate(fleet(2, losses=losses), [asked(output=50)]).jobs
    assert job.num_moves == 1
    assert job.longest_pause_s < 0.1


def test_a_begun_stream_waits_for_its_own_group_while_the_others_are_full():
    arrivals = [asked(prompt=16, output=500), asked(prompt=16, output=500)]
    losses = [Loss(group=0, at_s=0.5, recover_s=1.0)]
    outcome = simulate(fleet(2, losses=losses, max_num_seqs=1), arrivals)
    paused = max(outcome.jobs, key=lambda job: job.longest_pause_s)
    assert paused.longest_pause_s == pytest.approx(1.0, abs=0.1)
    assert paused.num_moves == 0


def test_a_lost_group_brings_nothing_while_it_is_away():
    arrivals = poisson(30.0, 600, prompt=10, output=20)
    with_it, without = (
        simulate(fleet(1, losses=losses), arrivals)
        for losses in ([Loss(group=0, at_s=5.0, recover_s=6.0)], [])
    )
    between = range(6, 11)
    assert sum(with_it.tokens_by_second.get(second, 0) for second in between) == 0
    assert all(without.tokens_by_second[second] > 0 for second in between)


def test_a_hopeless_run_is_given_up():
    outcome = simulate(fleet(), poisson(1000.0, 5000), ttft_limit_s=0.5, most_late=10)
    assert outcome.given_up
    assert outcome.num_late == 11
    assert len(outcome.jobs) < 5000


def test_equal_beginnings_go_to_the_group_that_holds_them():
    # Two kinds of prompts that alternate, each of 128 tokens in common.
    arrivals = [
        asked(0.3 * index, prompt=128, output=1, first_id=1000 * (index % 2)) for index in range(20)
    ]
    outcome = simulate(fleet(2, prefix_caching=True), arrivals)
    assert sum(job.num_cached > 0 for job in outcome.jobs) == 18


class RoundRobin(Router):
    """One group after the other, whatever it has to do."""

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self._num_groups, self._turn = num_groups, 0

    def cost(self, group, wanted, keys):
        return (group - self._turn) % self._num_groups

    def sent(self, group, wanted, keys):
        super().sent(group, wanted, keys)
        self._turn += 1


def served(num_groups, arrivals, *, num_blocks):
    """Cached tokens, and the 99th percentile of the time to the first token."""
    sizes = {
        "prefix_caching": True, "steps_ahead": 1, "max_num_seqs": 8, "block_size": 32,
        "largest_prefill": 512, "prefill_tokens_per_step": 512, "num_blocks": num_blocks,
    }  # fmt: skip
    times = RoundTimes(per_token=0.2, decode=15.0)
    outcome = simulate(fleet(num_groups, times=times, **sizes), arrivals)
    num_cached = sum(job.num_cached for job in outcome.jobs)
    return num_cached, measure(outcome, num_groups=num_groups).ttft_ms["p99"]


def with_beginnings(source, at_s):
    """One of 24 beginnings of 512 tokens, more than a group of four holds, and 64 of its own."""
    first, own = 10_000 * source.randrange(24), source.randrange(10**6, 10**9)
    tokens = [*range(first, first + 512), *range(own, own + 64)]
    return Arrival(at_s=at_s, tokens=tokens, num_output=16)


def of_all_lengths(source, at_s):
    prompt = source.randint(600, 1800) if source.random() < 0.2 else source.randint(20, 300)
    return asked(
        at_s, prompt=prompt, output=source.randint(16, 128), first_id=source.getrandbits(60)
    )


def made_up(make, *, rate, count=600, seed=0):
    source, at_s, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at_s += source.expovariate(rate)
        found.append(make(source, at_s))
    return found


def test_groups_find_nine_of_ten_beginnings_that_one_big_group_finds(monkeypatch):
    arrivals = made_up(with_beginnings, rate=10.0)
    in_one, _ = served(1, arrivals, num_blocks=4 * 200)
    in_four, p99_ms = served(4, arrivals, num_blocks=200)
    monkeypatch.setattr(simulation, "Router", lambda: RoundRobin(4))
    by_turns, p99_by_turns_ms = served(4, arrivals, num_blocks=200)
    assert in_four > 0.9 * in_one > by_turns
    assert p99_ms < p99_by_turns_ms


@pytest.mark.parametrize("rate", [12.0, 16.8])
def test_first_tokens_come_no_later_than_by_turns(rate, monkeypatch):
    arrivals = made_up(of_all_lengths, rate=rate)
    _, p99_ms = served(4, arrivals, num_blocks=1000)
    monkeypatch.setattr(simulation, "Router", lambda: RoundRobin(4))
    _, by_turns_ms = served(4, arrivals, num_blocks=1000)
    assert p99_ms <= by_turns_ms
