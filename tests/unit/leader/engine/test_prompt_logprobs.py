"""What prompts are asked for, and when what was told of them is whole."""

from types import SimpleNamespace

import numpy as np
import pytest

from rufus_serve.leader.engine.prompt_logprobs import PromptLogprobs
from rufus_serve.leader.engine.step_builder import (
    PlannedStep,
    PromptWant,
    Row,
    StepBuilder,
)
from rufus_serve.protocol.messages import PromptScores, StepReply

TOKENS = np.arange(100, 120, dtype=np.int32)


def row(start: int, stop: int, *, wants_logits: bool = False, num_prompt: int = 20) -> Row:
    return Row(
        TOKENS, start, stop - start, list(range(1, 9)), is_prefill=True,
        wants_logits=wants_logits, prompt_want=PromptWant(num_prompt, 3),
    )  # fmt: skip


def plan(*rows: Row) -> list[PlannedStep]:
    builder = StepBuilder(
        block_size=4, largest_prefill=8, largest_decode_batch=4, batches_prefills=True
    )
    return builder.build(rows, epoch=1, first_step_id=0)


def asked(steps: list[PlannedStep]) -> list[list[int]]:
    return [
        [] if each.request.prompt_wants is None else each.request.prompt_wants.next_ids.tolist()
        for each in steps
    ]


def answer(step: PlannedStep) -> tuple[PlannedStep, StepReply]:
    """Tells of each token asked for that it has itself as logit."""
    scores = None
    if step.request.prompt_wants is not None:
        ids = step.request.prompt_wants.next_ids[:, np.newaxis]
        size = len(ids)
        scores = PromptScores(
            ids=ids, logits=ids.astype(np.float32), log_totals=np.zeros(size),
            ranks=np.ones(size, np.int32),
        )  # fmt: skip
    reply = StepReply(step_id=0, epoch=1, node_rank=0, compute_s=0.0, prompt_scores=scores)
    return step, reply


def wanting(num_prompt: int = 20, *, num_output: int = 0, best: int | None = 3) -> PromptLogprobs:
    prompts = PromptLogprobs(vocab_size=50)
    params = SimpleNamespace(prompt_logprobs=best)
    prompts.begin("a", params, num_prompt=num_prompt, num_output=num_output)
    return prompts


def test_each_part_of_a_prompt_asks_for_the_tokens_behind_its_own():
    steps = plan(row(0, 20, wants_logits=True))
    assert asked(steps) == [list(range(101, 109)), list(range(109, 117)), [117, 118, 119]]
    assert [each.request.want_logits for each in steps] == [False, False, True]
    assert all(each.request.prompt_wants.num_best == 3 for each in steps)


def test_nothing_is_asked_behind_the_last_token_of_a_prompt():
    assert asked(plan(row(19, 20, wants_logits=True))) == [[]]
    assert asked(plan(row(12, 20, num_prompt=15))) == [[113, 114]]


def test_a_prompt_that_is_asked_for_shares_its_steps_with_none():
    steps = plan(row(0, 3, wants_logits=True, num_prompt=3), row(0, 2, wants_logits=True))
    assert [each.members for each in steps] == [(0,), (1,)]
    assert asked(steps) == [[101, 102], [101, 102]]


def test_a_prompts_tokens_are_told_once_all_steps_are_answered():
    prompts = wanting()
    for step in plan(row(0, 20, wants_logits=True)):
        prompts.collect([answer(step)], ["a"])
    scores = prompts.pop(["a", "b"])["a"]
    assert scores.ids[:, 0].tolist() == list(range(101, 120))
    assert prompts.pop(["a"]) == {}
    assert prompts.want("a") is None


def test_what_begins_anew_forgets_what_was_told():
    prompts = wanting()
    prompts.collect([answer(plan(row(0, 8))[0])], ["a"])
    params = SimpleNamespace(prompt_logprobs=3)
    prompts.begin("a", params, num_prompt=20, num_output=0)
    for step in plan(row(0, 20, wants_logits=True)):
        prompts.collect([answer(step)], ["a"])
    assert prompts.pop(["a"])["a"].ids[:, 0].tolist() == list(range(101, 120))


@pytest.mark.parametrize("prompts", [wanting(num_output=1), wanting(best=None)])
def test_what_has_a_token_or_wants_none_is_not_asked_for(prompts: PromptLogprobs):
    assert prompts.want("a") is None


def test_no_more_tokens_are_asked_for_than_there_are():
    assert wanting(best=1000).want("a") == PromptWant(20, 50)


def test_of_a_lone_token_there_is_nothing_to_tell():
    prompts = wanting(num_prompt=1)
    assert prompts.want("a") is not None
    assert prompts.pop(["a"]) == {}


def test_a_request_that_is_over_is_forgotten():
    prompts = wanting()
    prompts.forget(["a", "b"])
    assert prompts.want("a") is None
