"""A step that is made ready while the one before it runs is the step that would have been made.

The engine's own loop, batch, step builder, sampler and follower's stepper, around a model of
numbers. Outputs are queued as vLLM's asynchronous scheduler queues them: two at a time, so the
later one without knowing what the earlier one's tokens will be. An answer is held back until then.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import leader_vllm  # noqa: F401 - before anything of vLLM's
import numpy as np
import pytest
from test_drafts_change_no_token import (
    INFO,
    KINDS,
    PROMPT,
    VOCAB,
    logits_after,
    parameters,
    vllm_config,
)

from rufus_serve.channel.base import FollowerLost
from rufus_serve.follower.stepper import Stepper
from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.group_steps import GroupSteps
from rufus_serve.leader.engine.sampling import TokenSampler
from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_builder import StepBuilder
from rufus_serve.leader.engine.step_counter import StepCounter
from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.leader.engine.step_loop import StepLoop
from rufus_serve.protocol.messages import (
    GroupReady,
    Phase,
    StepEndpoint,
    StepOrder,
    StepReply,
    StepRequest,
)
from rufus_serve.runtime.logits import WholeLogits

LENGTH, DEADLINE_S = 40, 30.0
JOINS_AT = 6
STEADY = ["greedy", "seeded", "top-k", "top-p", "min-p", "logprobs"]
"""Kinds whose steps want the same for every token."""


class Numbers:
    """A runtime whose logits depend on the last token alone."""

    last_wait_s = 0.0

    def prefill(self, step: StepRequest) -> WholeLogits:
        ends = np.cumsum(step.context_lens) - 1
        return self._logits(step.token_ids[ends])

    def decode(self, step: StepRequest) -> WholeLogits:
        return self._logits(step.token_ids)

    def _logits(self, tokens: np.ndarray) -> WholeLogits:
        return WholeLogits(np.stack([logits_after(np.array([token])) for token in tokens]))


class Followers:
    """One follower in place of a channel, whose answers are held back until they are allowed."""

    num_stale = 0

    def __init__(self) -> None:
        self.on_send: Callable[[StepRequest], None] = lambda _: None
        self.lose_next = False
        self._changed = threading.Condition()
        self._awaited = self._allowed = -1
        self._outputs: dict[int, int] = {}
        """By step: the first step of the same scheduler output."""
        self._replies: dict[int, Any] = {}

    def connect(self, epoch: int, endpoints: Sequence[StepEndpoint], *, deadline_s: float) -> None:
        self._stepper = Stepper(Numbers(), epoch=epoch, node_rank=0)
        self._awaited = self._allowed = -1
        self._replies.clear()

    def broadcast(self, order: StepOrder) -> None:
        if isinstance(order, StepRequest):
            self.on_send(order)
            self._outputs[order.step_id] = order.keep_since
        self._replies[order.step_id] = self._stepper.run(order)

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        output = self._outputs.pop(step_id, None)
        if output is not None:
            with self._changed:
                self._awaited = output
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self._allowed >= output, DEADLINE_S)
            if self.lose_next:
                self.lose_next = False
                raise FollowerLost(0, "connection closed")
        return [self._replies.pop(step_id)]

    def await_waiter(self) -> None:
        """Until the loop waits for an answer that is held back."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._awaited > self._allowed, DEADLINE_S)

    def allow(self) -> None:
        """Answer what is waited for."""
        with self._changed:
            self._allowed = self._awaited
            self._changed.notify_all()


class Requests:
    """What a scheduler plans of requests that end, begin and are lost."""

    def __init__(self, asked: dict[str, Any], lengths: dict[str, int]) -> None:
        self.asked, self.lengths = asked, lengths
        self.tokens: dict[str, list[int]] = {}
        self.planned: dict[str, int] = {}
        """Tokens that all queued steps together make."""
        self._ended: set[str] = set()

    def begin(self, *req_ids: str) -> list[Any]:
        for req_id in req_ids:
            self.tokens[req_id], self.planned[req_id] = list(PROMPT), 0
        return [
            SimpleNamespace(
                req_id=req_id, prompt_token_ids=list(PROMPT), sampling_params=self.asked[req_id],
                block_ids=(self._blocks(req_id),), num_computed_tokens=0, prefill_token_ids=None,
            )
            for req_id in req_ids
        ]  # fmt: skip

    def running(self) -> list[str]:
        return [r for r, count in self.planned.items() if count < self.lengths[r]]

    def output(self, epoch: int, new: Sequence[Any] = (), *, resumed: bool = False) -> Any:
        fresh = [each.req_id for each in new]
        cached = [r for r in self.running() if r not in fresh]
        known = {r: len(PROMPT) + self.planned[r] for r in cached}
        counts = {r: known[r] if resumed else 1 for r in cached}
        for req_id in cached + fresh:
            self.planned[req_id] += 1
        ended = {r for r in self.tokens if self._is_done(r)} - self._ended
        self._ended |= ended
        return SimpleNamespace(
            epoch=epoch, finished_req_ids=ended, scheduled_new_reqs=list(new),
            scheduled_spec_decode_tokens={},
            num_scheduled_tokens=counts | {each.req_id: len(PROMPT) for each in new},
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=cached, resumed_req_ids=set(cached) if resumed else set(),
                all_token_ids={r: list(self.tokens[r]) for r in cached} if resumed else {},
                num_computed_tokens=[known[r] - counts[r] for r in cached],
                new_block_ids=[(self._blocks(r),) if resumed else None for r in cached],
            ),
        )  # fmt: skip

    def take(self, result: Any) -> None:
        for req_id, token_ids in zip(result.req_ids, result.sampled_token_ids, strict=True):
            self.tokens[req_id] += token_ids

    def forget_queued(self) -> None:
        for req_id, tokens in self.tokens.items():
            self.planned[req_id] = len(tokens) - len(PROMPT)

    def _is_done(self, req_id: str) -> bool:
        return len(self.tokens[req_id]) - len(PROMPT) >= self.lengths[req_id]

    def _blocks(self, req_id: str) -> list[int]:
        first = 1 + 5 * list(self.asked).index(req_id)
        return list(range(first, first + 5))


class Site:
    """A loop of the engine's, and a scheduler with one step queued, or with two."""

    def __init__(self, requests: Requests) -> None:
        config = vllm_config()
        self.engine, self.followers, self.requests = Engine(), Followers(), requests
        self.steps = GroupSteps(
            self.followers, self.engine.gate, builder=StepBuilder.for_runtime(INFO),
            progress=StepCounter(self.engine), deadline=StepDeadline(DEADLINE_S),
            tell_lost=lambda *_: None,
        )  # fmt: skip
        state = BatchState(config, info=INFO)
        sampler = TokenSampler(config, state, vocab_size=VOCAB)
        self.loop = StepLoop(self.steps, self.engine, state, sampler)
        self.epoch = self.num_ahead = 0
        self._sampled: list[Future[Any]] = []
        self._sent: set[int] = set()
        self.followers.on_send = self._on_send
        self.connect()

    def connect(self) -> None:
        self.epoch += 1
        self.engine.gate.announce(self.epoch)
        ready = GroupReady(epoch=self.epoch, endpoints=(), info=INFO)
        assert self.loop.submit(self.steps.connect, ready).result(DEADLINE_S)

    def queue(self, output: Any) -> None:
        self.loop.execute(output)
        self._sampled.append(self.loop.sample(None))

    def finish(self, number: int) -> bool:
        """Have a queued step answered, and take its tokens; False if it was lost."""
        self.followers.await_waiter()
        self.followers.allow()
        result = self._sampled[number].result(DEADLINE_S)
        if isinstance(result, vllm_compat.StepLost):
            return False
        self.requests.take(result)
        return True

    def recover(self) -> None:
        """Once all that was queued is lost: another epoch, in which all requests are resumed."""
        last = self._sampled[-1].result(DEADLINE_S)
        assert isinstance(last, vllm_compat.StepLost)
        self.requests.forget_queued()
        self.connect()
        self.queue(self.requests.output(self.epoch, resumed=True))

    @property
    def num_queued(self) -> int:
        return len(self._sampled)

    def _on_send(self, request: StepRequest) -> None:
        if request.keep_since not in self._sent:
            before = len(self._sent) - 1
            self._sent.add(request.keep_since)
            self.num_ahead += before >= 0 and not self._sampled[before].done()


def serve(
    names: Sequence[str], *, ahead: bool, late: Sequence[str] = (), lost: Sequence[int] = ()
) -> Site:
    """Requests of these kinds to their ends, one token further apart each.

    The `late` ones begin with the sixth step; steps of these numbers are `lost`.
    """
    asked = {name: parameters(seed, **KINDS[name]) for seed, name in enumerate(names)}
    requests = Requests(asked, {name: LENGTH - place for place, name in enumerate(names)})
    site = Site(requests)
    site.queue(requests.output(site.epoch, requests.begin(*(n for n in names if n not in late))))
    number = 0
    while number < site.num_queued:
        new = requests.begin(*late) if number + 1 == JOINS_AT else []
        if ahead and (new or requests.running()):
            site.followers.await_waiter()
            site.queue(requests.output(site.epoch, new))
            new = []
        site.followers.lose_next = number in lost
        if site.finish(number):
            number += 1
        else:
            site.recover()
            number = site.num_queued - 1
        if number == site.num_queued and (new or requests.running()):
            site.queue(requests.output(site.epoch, new))
    return site


def texts(site: Site) -> dict[str, list[int]]:
    return site.requests.tokens


@pytest.mark.parametrize("names", [STEADY, list(KINDS)], ids=["steady", "all"])
def test_tokens_are_those_of_one_step_at_a_time(names: list[str]) -> None:
    alone = serve(names, ahead=False)
    ahead = serve(names, ahead=True)
    assert alone.num_ahead == 0
    assert texts(ahead) == texts(alone)
    assert {name: len(tokens) - len(PROMPT) for name, tokens in texts(ahead).items()} == {
        name: LENGTH - place for place, name in enumerate(names)
    }


def test_steps_are_sent_before_the_tokens_of_the_ones_before_are_told() -> None:
    site = serve(["greedy", "seeded", "repetition"], ahead=True)
    # Not behind the prompts' own step, nor where one of three requests has come to its end.
    assert site.num_ahead >= LENGTH - 5


def test_requests_that_join_get_their_own_tokens() -> None:
    names = ["greedy", "top-p", "seeded", "logprobs"]
    alone = serve(names, ahead=False, late=names[2:])
    ahead = serve(names, ahead=True, late=names[2:])
    assert texts(ahead) == texts(alone)
    assert ahead.num_ahead > LENGTH // 2


@pytest.mark.parametrize("lost", [[0], [1], [7], [7, 12]])
def test_a_loss_takes_the_step_that_was_made_ready_with_it(lost: list[int]) -> None:
    names = ["greedy", "top-p", "presence"]
    ahead = serve(names, ahead=True, lost=lost)
    assert texts(ahead) == texts(serve(names, ahead=False))
    assert ahead.engine.gate.epoch == 1 + len(lost)


def test_a_step_that_was_sent_ahead_is_lost_with_its_epoch() -> None:
    """The epoch ends between the sending and the turn of the step."""
    site = Site(Requests({"a": parameters(0, **KINDS["greedy"])}, {"a": LENGTH}))
    requests = site.requests
    site.queue(requests.output(site.epoch, requests.begin("a")))
    site.followers.await_waiter()
    site.queue(requests.output(site.epoch))
    sent = []
    site.followers.on_send = lambda order: (sent.append(order), site.engine.gate.shut(1))
    assert site.finish(0)
    site.followers.lose_next = True
    assert not site.finish(1)
    assert [order.phase for order in sent] == [Phase.DECODE]
    requests.forget_queued()
    site.connect()
    site.queue(requests.output(site.epoch, resumed=True))
    assert site.finish(2)
    assert len(texts(site)["a"]) == len(PROMPT) + 2
