import pytest
from tests.unit.plan.traffic.made import RoundTimes, asked, engine

from rufus_serve.plan.traffic.engine import Job


def added(scheduler, *arrivals):
    jobs = [Job(str(number), arrival) for number, arrival in enumerate(arrivals)]
    for job in jobs:
        scheduler.add(job)
    return jobs


def run(scheduler, num_steps=1, now_s=0.0):
    """Seconds of each step, all delivered at once."""
    found = []
    for _ in range(num_steps):
        step = scheduler.schedule()
        if step is None:
            break
        scheduler.finish(step, now_s)
        found.append(step.durations_s[0])
    return found


def test_nothing_is_scheduled_without_requests():
    assert engine().schedule() is None


def test_a_request_is_prefilled_and_then_decoded_to_its_end():
    scheduler = engine()
    (job,) = added(scheduler, asked(prompt=64, output=3))
    assert run(scheduler, 10) == [0.064, 0.010, 0.010]
    assert job.is_done
    assert scheduler.num_blocks_used == 0


def test_a_step_takes_the_decode_and_each_prefill_one_after_another():
    scheduler = engine()
    added(scheduler, asked(prompt=64, output=9))
    run(scheduler)
    added(scheduler, asked(prompt=32), asked(prompt=48))
    assert run(scheduler) == [pytest.approx(0.010 + 0.032 + 0.048)]


def test_prompts_share_a_prefill_where_the_runtime_can():
    per_call = RoundTimes(per_token=0.0)
    per_call.prefill_ms = lambda tokens, computed: 5.0
    for batched, expected in ((False, 0.010), (True, 0.005)):
        scheduler = engine(per_call, batched_prefill=batched)
        added(scheduler, asked(prompt=32), asked(prompt=48))
        assert run(scheduler) == [expected]


def test_prompts_beyond_the_budget_wait_for_the_next_step():
    scheduler = engine(prefill_tokens_per_step=64)
    added(scheduler, asked(prompt=64), asked(prompt=64))
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.waiting)) == (1, 1)


def test_a_long_prompt_is_prefilled_in_parts_and_brings_its_token_with_the_last():
    scheduler = engine(max_num_seqs=1)
    (job,) = added(scheduler, asked(prompt=300, output=1))
    seconds = []
    while not job.is_done:
        seconds += run(scheduler)
    assert seconds == [pytest.approx(each) for each in (0.128, 0.129, 0.043)]


def test_without_segments_a_prompt_waits_for_a_step_that_holds_it_whole():
    scheduler = engine(segmented_prefill=False, prefill_tokens_per_step=100)
    added(scheduler, asked(prompt=60), asked(prompt=60))
    assert run(scheduler) == [0.060]
    assert run(scheduler) == [pytest.approx(0.010 + 0.060)]


def test_beside_running_requests_only_so_many_prompts_come_in():
    scheduler = engine(max_prefills_per_step=1)
    added(scheduler, asked(prompt=16, output=9))
    run(scheduler)
    added(scheduler, asked(prompt=16), asked(prompt=16))
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)


def test_no_more_run_than_max_num_seqs():
    scheduler = engine(max_num_seqs=2)
    added(scheduler, *[asked(prompt=16)] * 3)
    scheduler.schedule()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)


def test_a_request_waits_for_free_blocks():
    scheduler = engine(num_blocks=6)
    added(scheduler, asked(prompt=64, output=2), asked(prompt=64, output=2))
    scheduler.schedule()
    assert (scheduler.num_blocks_used, len(scheduler.waiting)) == (4, 1)


def test_the_newest_is_preempted_when_blocks_run_out_and_ends_all_the_same():
    scheduler = engine(num_blocks=8)
    first, second = added(scheduler, asked(prompt=60, output=40), asked(prompt=60, output=40))
    while not (first.is_done and second.is_done):
        assert run(scheduler)
    assert scheduler.num_preemptions == 1
    assert scheduler.num_blocks_used == 0
    assert (first.delivered, second.delivered) == (40, 40)


def test_a_cached_beginning_is_not_computed_again():
    scheduler = engine(prefix_caching=True)
    first, second = asked(prompt=128, output=1), asked(prompt=128, output=1)
    added(scheduler, first)
    assert run(scheduler) == [0.128]
    added(scheduler, second)
    # The last token is computed in any case, and its block with it.
    assert run(scheduler) == [pytest.approx(0.016)]


def test_a_step_planned_before_a_loss_brings_nothing_after_it():
    scheduler = engine()
    (job,) = added(scheduler, asked(output=3))
    step = scheduler.schedule()
    assert scheduler.clear() == [job]
    scheduler.add(job)
    assert scheduler.finish(step, 0.0) == []
    assert run(scheduler, 3) == [0.064, 0.010, 0.010]


def test_what_was_begun_elsewhere_is_prefilled_with_its_output_before_what_waits():
    scheduler = engine(max_num_seqs=1)
    added(scheduler, asked())
    moved = Job("moved", asked(prompt=64, output=9), delivered=5)
    scheduler.add(moved)
    assert run(scheduler) == [0.069]
    assert moved.delivered == 6


def test_pauses_are_between_tokens_not_before_the_first():
    job = Job("a", asked(output=3))
    for now_s in (5.0, 5.1, 7.1):
        job.take_token(now_s)
    assert job.first_s == 5.0
    assert job.longest_pause_s == 2.0
