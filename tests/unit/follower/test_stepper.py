import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rufus_serve.errors import CollectiveAborted
from rufus_serve.follower.stepper import Stepper, best_candidates
from rufus_serve.protocol.messages import Phase, StepFailed, StepReply, StepRequest


def request(step_id: int = 3, phase: Phase = Phase.DECODE, **fields) -> StepRequest:
    ones = np.ones(2, np.int32)
    return StepRequest(
        step_id=step_id,
        epoch=4,
        phase=phase,
        token_ids=ones,
        num_computed_tokens=ones,
        context_lens=ones,
        block_table=ones.reshape(2, 1),
        slot_mapping=ones,
        **fields,
    )


class ScriptedRuntime:
    """Answers each call with the next of `results`, or raises it."""

    def __init__(self, *results) -> None:
        self.results = list(results)
        self.calls: list[str] = []
        self.last_wait_s = 0.25

    def prefill(self, step):
        return self._next("prefill")

    def decode(self, step):
        return self._next("decode")

    def _next(self, call):
        self.calls.append(call)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def stepper(*results) -> tuple[Stepper, ScriptedRuntime]:
    runtime = ScriptedRuntime(*results)
    return Stepper(runtime, epoch=4, node_rank=1), runtime


LOGITS = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 3.0, 2.0]], np.float32)


def test_each_phase_calls_its_own_graph():
    steps, runtime = stepper(None, None)
    steps.run(request(phase=Phase.PREFILL))
    steps.run(request(phase=Phase.DECODE))
    assert runtime.calls == ["prefill", "decode"]


def test_a_reply_names_step_epoch_and_rank_and_brings_all_logits():
    steps, _ = stepper(LOGITS)
    reply = steps.run(request())
    assert isinstance(reply, StepReply)
    assert (reply.step_id, reply.epoch, reply.node_rank, reply.wait_s) == (3, 4, 1, 0.25)
    assert reply.logits is LOGITS
    assert reply.top_ids is None


def test_candidates_are_sent_instead_when_they_are_asked_for():
    steps, _ = stepper(LOGITS)
    reply = steps.run(request(num_candidates=2))
    assert reply.logits is None
    assert reply.top_ids.tolist() == [[1, 3], [0, 1]]


def test_logits_that_nobody_wants_are_not_sent():
    steps, _ = stepper(LOGITS)
    assert steps.run(request(want_logits=False)).logits is None


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), CollectiveAborted("peer left")])
def test_a_failed_step_is_answered_and_every_later_one_of_the_epoch_fails_unrun(error):
    steps, runtime = stepper(error, LOGITS)
    first, second = steps.run(request(3)), steps.run(request(4))
    assert isinstance(first, StepFailed)
    assert str(error) in first.error
    assert isinstance(second, StepFailed)
    assert (second.step_id, second.epoch) == (4, 4)
    assert str(error) in second.error
    assert len(runtime.calls) == 1


ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.integers(-8, 8).map(lambda value: value / 2),
)


@given(ROWS, st.integers(1, 50))
def test_candidates_are_the_best_in_falling_order_with_the_rows_normalizer(logits, wanted):
    values, ids, normalizer = best_candidates(logits, wanted)
    count = min(wanted, logits.shape[1])
    expected = torch.topk(torch.from_numpy(logits), count)
    assert values.shape == ids.shape == (logits.shape[0], count)
    assert (values == expected.values.numpy()).all()
    assert (np.take_along_axis(logits, ids, axis=1) == values).all()
    assert all(len(set(row)) == count for row in ids.tolist())
    np.testing.assert_allclose(
        normalizer, torch.logsumexp(torch.from_numpy(logits), dim=1).numpy(), rtol=1e-5, atol=1e-5
    )
    assert (values.dtype, ids.dtype, normalizer.dtype) == (np.float32, np.int32, np.float32)


@given(ROWS, st.integers(1, 50))
def test_the_first_candidate_is_the_argmax_also_among_equals(logits, wanted):
    assert best_candidates(logits, wanted)[1][:, 0].tolist() == logits.argmax(axis=1).tolist()


def test_equal_candidates_come_in_the_order_of_their_ids():
    assert best_candidates(np.array([[1.0, 2.0, 2.0, 2.0]], np.float32), 4)[1].tolist() == [
        [1, 2, 3, 0]
    ]


def test_large_logits_do_not_overflow_the_normalizer():
    logits = np.array([[1000.0, 999.0]], np.float32)
    assert best_candidates(logits, 1)[2] == pytest.approx(1000.3133, abs=1e-3)


def test_masked_tokens_do_not_disturb_the_normalizer():
    logits = np.array([[1.0, -np.inf, 0.0]], np.float32)
    _, ids, normalizer = best_candidates(logits, 2)
    assert ids.tolist() == [[0, 2]]
    assert normalizer[0] == pytest.approx(np.log(np.e + 1.0), abs=1e-5)
