"""Followers that draft and choose tokens themselves: texts are the greedy ones of the model.

The model of numbers stands in for graphs of fused speculation, written to their contract: a decode
is given one token a row, and returns 1 to k tokens of the model's own greedy text.
"""

from typing import Any

import leader_vllm  # noqa: F401 - before anything of vLLM's
import msgspec
import numpy as np
import pytest
from test_drafts_change_no_token import (
    INFO,
    LENGTH,
    MOST_DRAFTS,
    PROMPT,
    Engine,
    logits_after,
    parameters,
    texts,
)

from rufus_serve.protocol.messages import ChosenTokens, Phase, StepReply

MOST = 1 + MOST_DRAFTS
NAMES = ["first", "second", "third"]


class FusedEngine(Engine):
    """Over followers whose drafts come true now and then, all of them or none."""

    info = msgspec.structs.replace(
        INFO, candidates=False, multi_token_decode=False, chosen_tokens=MOST
    )

    def _reply(self, step: Any, contexts: list[np.ndarray]) -> StepReply:
        request = step.request
        token_ids = np.full((request.num_rows, MOST), -1, np.int32)
        counts = np.ones(request.num_rows, np.int32)
        for row, of in enumerate(step.rows):
            context = contexts[of.row]
            if request.phase is Phase.DECODE:
                assert request.token_ids[row] == context[-1]
                assert request.num_computed_tokens[row] == len(context) - 1
                counts[row] = 1 + (7 * len(context) + of.row) % MOST
            last = int(context[-1])
            for place in range(counts[row]):
                last = int(np.argmax(logits_after(np.array([last]))))
                token_ids[row, place] = last
        chosen = ChosenTokens(token_ids=token_ids, num_accepted=counts)
        return StepReply(step_id=0, epoch=1, node_rank=0, compute_s=0.0, chosen=chosen)


def requests(*names: str) -> dict[str, Any]:
    return {name: parameters(seed, temperature=0.0) for seed, name in enumerate(names)}


def greedy_text() -> list[int]:
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + LENGTH:
        tokens.append(int(np.argmax(logits_after(np.array(tokens)))))
    return tokens


@pytest.mark.parametrize("lose_every", [0, 3], ids=["undisturbed", "steps lost"])
def test_texts_are_the_models_own_to_the_last_token_asked_for(lose_every: int) -> None:
    engine = FusedEngine(requests(*NAMES), drafter=None)
    engine.run(lose_every=lose_every)
    assert engine.num_accepted > 0
    assert texts(engine) == dict.fromkeys(NAMES, greedy_text())
    # None is given more tokens than it asked for, however many were chosen.
    assert {len(tokens) for tokens in engine.tokens.values()} == {len(PROMPT) + LENGTH}


def test_drafts_are_counted_as_the_places_that_followers_fill() -> None:
    engine = FusedEngine(requests("one"), drafter=None)
    engine._step(engine._output([engine._new("one")], num_new={}))
    assert engine.state.num_drafts == {}
    engine._step(engine._running(["one"]))
    assert engine.state.num_drafts == {"one": MOST_DRAFTS}


def test_no_more_is_taken_than_the_scheduler_has_places_for() -> None:
    engine = FusedEngine(requests("one"), drafter=None)
    engine._step(engine._output([engine._new("one")], num_new={}))
    while engine.num_accepted == 0:
        engine._step(engine._running(["one"]))
    before = len(engine.tokens["one"])
    for _ in range(MOST):
        planned = engine._running(["one"])
        planned.scheduled_spec_decode_tokens = {"one": [-1]}
        engine._step(planned)
        assert len(engine.tokens["one"]) <= before + 2
        before = len(engine.tokens["one"])
    assert engine.tokens["one"] == greedy_text()[:before]
