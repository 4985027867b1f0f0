import pytest

from rufus_serve.leader.engine.step_pace import StepPace
from rufus_serve.protocol.messages import StepReply


def reply(rank: int, *, compute_s: float, wait_s: float = 0.0) -> StepReply:
    return StepReply(step_id=0, epoch=1, node_rank=rank, compute_s=compute_s, wait_s=wait_s)


def test_waiting_for_peers_is_not_counted_as_compute() -> None:
    pace = StepPace()
    pace.observe([reply(0, compute_s=0.5, wait_s=0.25), reply(1, compute_s=0.5)])
    assert pace.take() == (0.25, 0.5)


def test_steps_are_averaged_and_forgotten_once_taken() -> None:
    pace = StepPace()
    pace.observe([reply(0, compute_s=0.25)])
    pace.observe([reply(0, compute_s=0.75)])
    assert pace.take() == (pytest.approx(0.5),)
    assert pace.take() == ()
