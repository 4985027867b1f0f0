import numpy as np

from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.protocol.messages import Phase, StepRequest


def step(phase: Phase, num_new: int = 1) -> StepRequest:
    zeros = np.zeros(num_new, dtype=np.int32)
    return StepRequest(
        step_id=0,
        epoch=0,
        phase=phase,
        token_ids=zeros,
        num_computed_tokens=zeros[:1],
        context_lens=zeros[:1] + num_new,
        block_table=zeros[:1, None],
        slot_mapping=zeros,
    )


def test_the_floor_holds_before_anything_is_known() -> None:
    assert StepDeadline(10.0).seconds_for(step(Phase.DECODE)) == 10.0


def test_fast_steps_do_not_undercut_the_floor() -> None:
    deadline = StepDeadline(10.0)
    deadline.observe(step(Phase.DECODE), 0.001)
    assert deadline.seconds_for(step(Phase.DECODE)) == 10.0


def test_slow_steps_raise_the_deadline_at_once_and_it_falls_slowly() -> None:
    deadline = StepDeadline(1.0)
    deadline.observe(step(Phase.DECODE), 2.0)
    raised = deadline.seconds_for(step(Phase.DECODE))
    assert raised > 20.0
    deadline.observe(step(Phase.DECODE), 0.01)
    assert 0.8 * raised < deadline.seconds_for(step(Phase.DECODE)) < raised


def test_a_longer_prefill_gets_more_time() -> None:
    deadline = StepDeadline(1.0)
    deadline.observe(step(Phase.PREFILL, 100), 1.0)
    short, long = (deadline.seconds_for(step(Phase.PREFILL, n)) for n in (100, 400))
    assert long == 4 * short


def test_no_deadline_is_unbounded() -> None:
    deadline = StepDeadline(10.0)
    deadline.observe(step(Phase.DECODE), 1e6)
    assert deadline.seconds_for(step(Phase.DECODE)) <= 600.0
