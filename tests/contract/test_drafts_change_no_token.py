"""Requests of every kind get the same tokens and logprobs with drafts as without.

A model made of numbers stands in for followers: its logits depend on the last tokens alone, so
that texts repeat themselves and drafts come true now and then. Steps go through the engine's own
batch, step builder and sampler, as vLLM's asynchronous scheduler would plan them.
"""

import functools
import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import leader_vllm  # noqa: F401 - before anything of vLLM's
import numpy as np
import pytest

from rufus_serve.leader.engine import request_sampling, vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.drafts import Drafter
from rufus_serve.leader.engine.sampling import TokenSampler
from rufus_serve.leader.engine.step_builder import StepBuilder
from rufus_serve.protocol.messages import RuntimeInfo, StepReply
from rufus_serve.runtime.candidates import whole_rows
from rufus_serve.runtime.logits import WholeLogits
from rufus_serve.runtime.prompt_scores import logits_of, score

VOCAB, LENGTH, MOST_DRAFTS = 400, 40, 5
INFO = RuntimeInfo(
    model_type="numbers", num_layers=1, num_kv_heads=1, head_size=8, vocab_size=VOCAB,
    dtype="float32", block_size=16, num_blocks=100, max_model_len=256, prefill_buckets=(256,),
    decode_batch_buckets=(64,), context_buckets=(256,), candidates=True, multi_token_decode=True,
)  # fmt: skip
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 3
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0},
    "top-k": {"top_k": 20, "temperature": 0.7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.05},
    "presence": {"temperature": 0.0, "presence_penalty": 1.0},
    "frequency": {"frequency_penalty": 0.8},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.2},
    "bias": {"logit_bias": {3: 2.0, 17: -100.0}},
    "allowed": {"allowed_token_ids": list(range(12)), "presence_penalty": 0.5},
    "min tokens": {"temperature": 0.0, "min_tokens": 20, "stop_token_ids": [5]},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
    "seeded logprobs": {"temperature": 0.8, "logprobs": 2, "repetition_penalty": 1.1},
    "bad words": {"temperature": 0.0, "bad": [[3, 4], [6]]},
}


NUM_USUAL = 9
"""Tokens 1 to 9 follow more often than others."""
NUM_CLASSES = 3
CHI_SQUARE_18 = 42.3
"""One in a thousand exceeds it, at 18 degrees of freedom: three classes behind nine tokens each."""


def logits_after(tokens: np.ndarray) -> np.ndarray:
    """[V] float32 of a text: it likes to go on as it began."""
    return _logits_behind(int(tokens[-1])).copy()


@functools.cache
def _logits_behind(last: int) -> np.ndarray:
    row = np.random.default_rng([7, last]).standard_normal(VOCAB).astype(np.float32)
    row[last % NUM_USUAL + 1] += 6.0
    return row


def vllm_config() -> SimpleNamespace:
    """As much of vLLM's configuration as batch and sampler read."""
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=32, max_num_batched_tokens=512),
        model_config=SimpleNamespace(
            max_model_len=256, logits_processors=None, logprobs_mode="raw_logprobs"
        ),
        reasoning_config=None, speculative_config=None,
    )  # fmt: skip


class Eager(Drafter):
    """Tries all that it finds, in every step."""

    def propose(self, texts: Any, *, num_rows: int) -> dict[str, list[int]]:
        super().propose(texts, num_rows=num_rows)
        found = {req_id: self._look_up(text) for req_id, text in texts.items()}
        return {req_id: drafts for req_id, drafts in found.items() if drafts}


class Engine:
    """The step thread's part of an engine, over the model of numbers."""

    info = INFO

    def __init__(self, requests: dict[str, Any], *, drafter: Drafter | None) -> None:
        config = vllm_config()
        self.state = BatchState(config, info=self.info, drafter=drafter)
        self.sampler = TokenSampler(config, self.state, vocab_size=VOCAB)
        self.requests = requests
        self.tokens: dict[str, list[int]] = {req_id: list(PROMPT) for req_id in requests}
        self.logprobs: dict[str, list[Any]] = {req_id: [] for req_id in requests}
        self.prompt_logprobs: dict[str, Any] = {}
        self.num_steps = self.num_accepted = 0

    def run(self, *, lose_every: int = 0, lose_first: bool = False) -> None:
        """To the end; every so many steps one is lost, and its requests are prefilled again."""
        new = [self._new(req_id) for req_id in self.requests]
        self._step(self._output(new, num_new={}), is_lost=lose_first)
        if lose_first:
            self._step(self._resumed(list(self.requests)))
        while open_ := [r for r in self.requests if len(self.tokens[r]) < len(PROMPT) + LENGTH]:
            is_lost = lose_every and self.num_steps % lose_every == lose_every - 1
            self._step(self._running(open_), is_lost=bool(is_lost))
            if is_lost:
                self._step(self._resumed(open_))

    def _running(self, req_ids: list[str]) -> Any:
        """As the scheduler plans it: it counts places for drafts as if all came true."""
        computed = [len(self.tokens[r]) - 1 + MOST_DRAFTS for r in req_ids]
        cached = _cached(req_ids, computed, [None] * len(req_ids))
        places = {req_id: [-1] * MOST_DRAFTS for req_id in req_ids}
        planned = dict.fromkeys(req_ids, 1 + MOST_DRAFTS)
        return self._output([], cached=cached, num_new=planned, places=places)

    def _resumed(self, req_ids: list[str]) -> Any:
        tokens = {req_id: list(self.tokens[req_id]) for req_id in req_ids}
        blocks = [self._new(req_id).block_ids for req_id in req_ids]
        cached = _cached(req_ids, [0] * len(req_ids), blocks, resumed=tokens)
        return self._output([], cached=cached, num_new={r: len(tokens[r]) for r in req_ids})

    def _output(
        self, new: list[Any], *, num_new: Any, cached: Any = None, places: Any = None
    ) -> Any:
        return SimpleNamespace(
            finished_req_ids=set(), scheduled_new_reqs=new,
            scheduled_cached_reqs=cached or _cached([], [], []),
            num_scheduled_tokens={each.req_id: len(PROMPT) for each in new} | num_new,
            scheduled_spec_decode_tokens=places or {},
        )  # fmt: skip

    def _step(self, output: Any, *, is_lost: bool = False) -> None:
        self.num_steps += 1
        rows = self.state.apply(output)
        if is_lost:
            self.state.empty_batch()
            return
        builder = StepBuilder.for_runtime(self.info)
        steps = builder.build(list(rows.values()), epoch=1, first_step_id=0)
        written = {r: np.array(row.token_ids[: row.end]) for r, row in rows.items()}
        answers = [(step, self._reply(step, list(written.values()))) for step in steps]
        self.sampler.collect(answers, list(rows))
        sampled = self.sampler.draw(output, None, self._look_up(list(written.values())))
        assert sampled is not None
        result = self.sampler.output(sampled)
        self._take(result)

    def _new(self, req_id: str) -> Any:
        blocks = [1 + 8 * list(self.requests).index(req_id) + at for at in range(8)]
        return SimpleNamespace(
            req_id=req_id, prompt_token_ids=list(PROMPT), sampling_params=self.requests[req_id],
            block_ids=(blocks,), num_computed_tokens=0, prefill_token_ids=None,
        )  # fmt: skip

    def _logits(self, step: Any, contexts: list[np.ndarray]) -> np.ndarray:
        """[rows of logits, V], each behind its own token alone."""
        ends = step.request.context_lens
        return np.stack([
            logits_after(contexts[of.row][:end]) for of, end in zip(step.rows, ends, strict=True)
        ])  # fmt: skip

    def _reply(self, step: Any, contexts: list[np.ndarray]) -> StepReply:
        logits, wants = WholeLogits(self._logits(step, contexts)), step.request.wants
        rows = whole_rows(wants, step.request.num_rows)
        return StepReply(
            step_id=0, epoch=1, node_rank=0, compute_s=0.0,
            logits=logits.rows(rows) if len(rows) else None,
            candidates=None if wants is None else logits.candidates(wants),
            prompt_scores=self._prompt_scores(step),
        )  # fmt: skip

    def _prompt_scores(self, step: Any) -> Any:
        request = step.request
        if request.prompt_wants is None:
            return None
        first, next_ids = request.num_computed_tokens[0], request.prompt_wants.next_ids
        behind = request.token_ids[first : first + len(next_ids)]
        logits = np.stack([_logits_behind(int(token)) for token in behind])
        own = logits_of(logits, next_ids, first_id=0)
        return score(logits, next_ids, own, num_best=request.prompt_wants.num_best, first_id=0)

    def _look_up(self, contexts: list[np.ndarray]) -> Callable[..., Any]:
        def look_up(answers: Any, wanted: Any) -> Any:
            return {
                of: row
                for step, _ in answers
                for of, row in zip(step.rows, self._logits(step, contexts), strict=True)
                if of in wanted
            }

        return look_up

    def _take(self, result: Any) -> None:
        for req_id, told in result.prompt_logprobs_dict.items():
            assert self.tokens[req_id] == PROMPT
            self.prompt_logprobs[req_id] = told
        for place, req_id in enumerate(result.req_ids):
            token_ids = result.sampled_token_ids[place]
            self.tokens[req_id] += token_ids
            self.num_accepted += len(token_ids) - 1
            if result.logprobs is not None and self.requests[req_id].logprobs:
                part = result.logprobs.slice_request(place, len(token_ids))
                width = 1 + self.requests[req_id].logprobs
                ids, values = part.logprob_token_ids[:, :width], part.logprobs[:, :width]
                self.logprobs[req_id] += zip(ids.tolist(), values.tolist(), strict=True)


def _cached(
    req_ids: list[str], computed: list[int], blocks: list[Any], *, resumed: Any = None
) -> Any:
    return SimpleNamespace(
        req_ids=req_ids, resumed_req_ids=set(resumed or ()), all_token_ids=resumed or {},
        num_computed_tokens=computed, new_block_ids=blocks,
    )  # fmt: skip


def parameters(seed: int, *, bad: Any = None, **fields: Any) -> Any:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=LENGTH, ignore_eos=True, seed=seed, **fields)
    params.update_from_generation_config({}, None)
    params._bad_words_token_ids = bad
    return params


def requests(names: list[str]) -> dict[str, Any]:
    return {name: parameters(seed, **KINDS[name]) for seed, name in enumerate(names)}


def texts(engine: Engine) -> dict[str, list[int]]:
    return {r: tokens[: len(PROMPT) + LENGTH] for r, tokens in engine.tokens.items()}


@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
def test_tokens_and_logprobs_are_those_without_drafts(together: bool) -> None:
    for names in [list(KINDS)] if together else [[name] for name in KINDS]:
        plain = Engine(requests(names), drafter=None)
        plain.run()
        drafted = Engine(requests(names), drafter=Eager(shortest=1, longest=4))
        drafted.run()
        assert drafted.num_accepted > 0, names
        assert texts(drafted) == texts(plain), names
        for name in names:
            assert drafted.logprobs[name][:LENGTH] == plain.logprobs[name], name


@pytest.mark.parametrize("is_seeded", [True, False], ids=["seeded", "unseeded"])
def test_drafts_leave_the_distribution_of_tokens_as_it_is(
    is_seeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pearson's chi-square of what follows each of the usual tokens, in classes of tokens."""
    chance = random.Random(0)
    monkeypatch.setattr(request_sampling, "any_seed", lambda: chance.getrandbits(64))
    counts = np.zeros((NUM_USUAL, NUM_CLASSES))
    num_accepted = 0
    for run in range(4):
        seeds = [1000 * run + row if is_seeded else None for row in range(32)]
        asked = {str(row): parameters(seed, temperature=1.0) for row, seed in enumerate(seeds)}
        engine = Engine(asked, drafter=Eager(shortest=1, longest=4))
        engine.run()
        num_accepted += engine.num_accepted
        for tokens in texts(engine).values():
            for last, token in itertools.pairwise(tokens[len(PROMPT) - 1 :]):
                if 1 <= last <= NUM_USUAL:
                    counts[last - 1, token % NUM_CLASSES] += 1
    assert num_accepted > 300
    classes = np.arange(VOCAB) % NUM_CLASSES == np.arange(NUM_CLASSES)[:, None]
    weights = np.stack([np.exp(logits_after(np.array([last]))) for last in range(1, NUM_USUAL + 1)])
    expected = weights @ classes.T / weights.sum(axis=1, keepdims=True)
    expected *= counts.sum(axis=1, keepdims=True)
    assert expected.min() > 8
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_18


def test_a_seeds_tokens_are_the_same_again() -> None:
    runs = []
    for _ in range(2):
        engine = Engine(requests(["seeded", "top-p"]), drafter=Eager(shortest=1, longest=4))
        engine.run()
        runs.append(texts(engine))
    assert runs[0] == runs[1]


def test_a_lost_step_leaves_no_draft_behind() -> None:
    plain = Engine(requests(list(KINDS)), drafter=None)
    plain.run()
    drafted = Engine(requests(list(KINDS)), drafter=Eager(shortest=1, longest=4))
    drafted.run(lose_every=4)
    assert drafted.num_accepted > 0
    assert texts(drafted) == texts(plain)


@pytest.mark.parametrize("loses_first", [False, True], ids=["undisturbed", "first step lost"])
def test_a_prompts_logprobs_come_once_with_its_first_token(loses_first: bool) -> None:
    asked = requests(["greedy", "seeded", "logprobs"])
    asked["seeded"].prompt_logprobs, asked["logprobs"].prompt_logprobs = 0, 2
    engine = Engine(asked, drafter=Eager(shortest=1, longest=4))
    engine.run(lose_first=loses_first, lose_every=4)
    plain = Engine(requests(list(asked)), drafter=None)
    plain.run()
    assert texts(engine) == texts(plain)
    assert engine.prompt_logprobs.keys() == {"seeded", "logprobs"}
    rows = np.stack([_logits_behind(token) for token in PROMPT[:-1]]).astype(np.float64)
    logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for req_id, told in engine.prompt_logprobs.items():
        ids, values = told.logprob_token_ids.numpy(), told.logprobs.numpy()
        assert ids[:, 0].tolist() == PROMPT[1:]
        assert ids.shape[1] == 1 + asked[req_id].prompt_logprobs
        np.testing.assert_allclose(values, np.take_along_axis(logprobs, ids, 1), atol=1e-5)
        ranks = (logprobs >= np.take_along_axis(logprobs, ids[:, :1], 1)).sum(axis=1)
        assert told.selected_token_ranks.tolist() == ranks.tolist()


def test_statistics_count_drafts_and_not_the_places_for_them() -> None:
    scheduled = SimpleNamespace(scheduled_spec_decode_tokens={"a": [-1] * 5, "b": [-1] * 5})
    output = vllm_compat.runner_output(
        ["a", "b"],
        [[1, 2], [3]],
        None,
        still_prefilling=[],
        num_drafts={"a": 2},
        prompt_logprobs={},
    )
    vllm_compat.tell_drafts(scheduled, output)
    assert scheduled.num_invalid_spec_tokens == {"a": 3, "b": 5}
    assert output.sampled_token_ids == [[1, 2], [3]]
