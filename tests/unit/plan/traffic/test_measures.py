import pytest
from tests.unit.plan.traffic.made import asked

from rufus_serve.plan.traffic.engine import Job
from rufus_serve.plan.traffic.measures import Slo, measure, measure_loss
from rufus_serve.plan.traffic.simulation import Loss, Outcome


def job(at_s, first_s, last_s, *, output=11) -> Job:
    made = Job(str(at_s), asked(at_s, output=output))
    made.delivered, made.first_s, made.last_s = output, first_s, last_s
    return made


def outcome(*jobs, **fields) -> Outcome:
    return Outcome(jobs=list(jobs), **fields)


def test_latencies_are_those_of_the_clients():
    found = measure(outcome(job(1.0, 1.2, 2.2), end_s=4.0, busy_s=2.0), num_groups=2)
    assert found.ttft_ms["p50"] == pytest.approx(200)
    assert found.tpot_ms["p99"] == pytest.approx(100)
    assert found.e2e_ms["p50"] == pytest.approx(1200)
    assert found.output_tokens_per_s == pytest.approx(11 / 1.2)
    assert found.utilization == 0.25


def test_the_first_requests_may_be_left_out():
    jobs = (job(0.0, 9.0, 9.1), job(5.0, 5.1, 6.0))
    assert measure(outcome(*jobs), num_groups=1, from_s=1.0).num_requests == 1


def test_nothing_is_measured_of_nothing():
    found = measure(outcome(), num_groups=1)
    assert (found.num_requests, found.ttft_ms, found.utilization) == (0, {}, 0.0)


@pytest.mark.parametrize(
    ("slo", "kept"),
    [(Slo(), True), (Slo(ttft_ms=250), True), (Slo(ttft_ms=150), False), (Slo(tpot_ms=90), False)],
)
def test_each_limit_counts_by_itself(slo, kept):
    assert measure(outcome(job(1.0, 1.2, 2.2)), num_groups=1).meets(slo) is kept


def test_a_loss_is_told_by_what_is_missing_between_it_and_the_return():
    loss = Loss(group=1, at_s=2.0, recover_s=3.0)
    without = outcome(job(2.5, 2.6, 3.0), tokens_by_second=dict.fromkeys(range(10), 10))
    late = job(2.5, 4.0, 4.5)
    late.num_moves, late.longest_pause_s = 1, 1.5
    with_it = outcome(late, tokens_by_second={0: 10, 1: 10, 2: 0, 3: 5, 4: 10, 5: 20})
    found = measure_loss(with_it, without, loss, Slo(ttft_ms=500))
    assert found.tokens_lost_share == pytest.approx(0.5)
    assert (found.num_late, found.num_late_without, found.num_moved) == (1, 0, 1)
    assert found.longest_pause_ms == 1500
