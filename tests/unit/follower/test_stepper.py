import numpy as np
import pytest

from rufus_serve.errors import CollectiveAborted
from rufus_serve.follower.stepper import Stepper
from rufus_serve.protocol.messages import (
    ChosenTokens,
    LogitsRequest,
    Phase,
    PromptScores,
    PromptWants,
    RowWants,
    StepFailed,
    StepReply,
    StepRequest,
)
from rufus_serve.runtime.logits import WholeLogits


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
        return WholeLogits(result) if isinstance(result, np.ndarray) else result


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
    assert reply.candidates is None


def wants(*num_candidates: int) -> RowWants:
    count = len(num_candidates)
    return RowWants(
        num_candidates=np.array(num_candidates, np.int32),
        temperatures=np.zeros((count, 2), np.float32),
        num_token_ids=np.zeros(count, np.int32),
        token_ids=np.zeros(0, np.int32),
    )


def rows_of(of_step_id: int, *rows: int, step_id: int = 9) -> LogitsRequest:
    return LogitsRequest(
        step_id=step_id, epoch=4, of_step_id=of_step_id, rows=np.array(rows, np.int32)
    )


def test_each_row_brings_what_is_wanted_of_it():
    steps, _ = stepper(LOGITS.copy())
    reply = steps.run(request(wants=wants(2, -1)))
    assert reply.candidates.ids.tolist() == [1, 3]
    assert reply.logits.tolist() == [LOGITS[1].tolist()]


def test_rows_of_the_last_steps_can_be_asked_for_until_the_next_begin():
    first, second, third = LOGITS.copy(), LOGITS.copy() + 10, LOGITS.copy() + 20
    steps, _ = stepper(first, second, third)
    steps.run(request(3, keep_since=3, wants=wants(1, 1)))
    steps.run(request(4, keep_since=3, wants=wants(1, 1)))
    assert steps.run(rows_of(3, 1)).logits.tolist() == [first[1].tolist()]
    assert steps.run(rows_of(4, 1, 0)).logits.tolist() == second[::-1].tolist()
    steps.run(request(5, keep_since=5, wants=wants(1, 1)))
    answer = steps.run(rows_of(4, 0))
    assert isinstance(answer, StepFailed)
    assert "step 4 are not kept" in answer.error


def test_a_follower_without_logits_answers_for_rows_with_none():
    steps, runtime = stepper()
    runtime.decode = lambda step: WholeLogits(None)
    assert steps.run(request(3, wants=wants(1, 1))).candidates is None
    assert steps.run(rows_of(3, 0)).logits is None


def test_logits_that_nobody_wants_are_not_sent():
    steps, _ = stepper(LOGITS)
    assert steps.run(request(want_logits=False)).logits is None


SCORES = PromptScores(
    ids=np.array([[1, 0]], np.int32),
    logits=np.array([[2.0, 3.0]], np.float32),
    log_totals=np.array([4.0]),
    ranks=np.array([2], np.int32),
)
PROMPT_WANTS = PromptWants(next_ids=np.array([1], np.int32), num_best=1)


class ScoredLogits(WholeLogits):
    def prompt_scores(self, wants):
        assert wants is PROMPT_WANTS
        return SCORES


@pytest.mark.parametrize("want_logits", [True, False])
def test_a_prompts_tokens_are_told_of_with_and_without_its_last_logits(want_logits):
    steps, runtime = stepper()
    runtime.prefill = lambda step: ScoredLogits(LOGITS)
    reply = steps.run(
        request(phase=Phase.PREFILL, prompt_wants=PROMPT_WANTS, want_logits=want_logits)
    )
    assert reply.prompt_scores is SCORES
    assert (reply.logits is not None) == want_logits


def test_a_runtime_with_logits_of_last_positions_refuses_to_tell_of_a_prompts_tokens():
    steps, _ = stepper(LOGITS)
    failed = steps.run(request(phase=Phase.PREFILL, prompt_wants=PROMPT_WANTS))
    assert isinstance(failed, StepFailed)
    assert failed.refused
    assert "last positions only" in failed.error


@pytest.mark.parametrize(
    ("error", "refused"),
    [(RuntimeError("out of memory"), True), (CollectiveAborted("peer left"), False)],
)
def test_a_failed_step_is_answered_and_every_later_one_of_the_epoch_fails_unrun(error, refused):
    steps, runtime = stepper(error, LOGITS)
    first, second = steps.run(request(3)), steps.run(request(4))
    assert isinstance(first, StepFailed)
    assert (first.refused, second.refused) == (refused, False)
    assert str(error) in first.error
    assert isinstance(second, StepFailed)
    assert (second.step_id, second.epoch) == (4, 4)
    assert str(error) in second.error
    assert len(runtime.calls) == 1


def test_tokens_that_the_runtime_chose_are_sent_instead_of_logits():
    chosen = ChosenTokens(
        token_ids=np.array([[5, 6], [7, -1]], np.int32), num_accepted=np.array([2, 1], np.int32)
    )
    steps, _ = stepper(chosen, None)
    reply = steps.run(request())
    assert reply.chosen is chosen
    assert (reply.logits, reply.candidates) == (None, None)
    assert steps.run(request()).chosen is None
    kept = steps.run(LogitsRequest(step_id=5, epoch=4, of_step_id=3, rows=np.array([0], np.int32)))
    assert "not kept any more" in kept.error
