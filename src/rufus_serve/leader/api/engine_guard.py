"""What happens to every request between vLLM's front end and the engine, whatever its route."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from rufus_serve.leader.api import vllm_compat
from rufus_serve.leader.api.call import CURRENT, Call
from rufus_serve.leader.api.grammar_compiler import GrammarCompiler
from rufus_serve.leader.api.grammar_limits import GrammarRefused
from rufus_serve.leader.api.greedy_only import needs_logits

_RANKS = 1_000_000
"""More than there are places, so that a key's priority outweighs how many it has open."""
_MOST_BEST = 1000
"""Likeliest tokens beside each of a prompt's: more would be whole vocabularies."""


def guard(
    engine: Any,
    grammars: GrammarCompiler,
    *,
    prioritized: bool,
    has_prompt_logprobs: bool,
    chooses_tokens: bool = False,
) -> None:
    """Have `engine.generate` check requests, set priorities and count tokens of the `Call`.

    `prioritized`: the engine schedules by priority. Then a key's requests come after those of
    keys that have fewer sequences open. `has_prompt_logprobs`: its followers tell them.
    `chooses_tokens`: they choose tokens, and tell nothing else of logits.
    """

    async def check(sampling_params: Any) -> None:
        if chooses_tokens:
            _check_greedy(sampling_params)
        _check_prompt_logprobs(
            vllm_compat.num_prompt_logprobs(sampling_params), has_prompt_logprobs
        )
        wanted = vllm_compat.grammar_of(sampling_params)
        if wanted is not None:
            await _check_grammar(grammars, *wanted)

    engine.generate = _guarded(engine.generate, check, prioritized=prioritized)


def _guarded(
    generate: Callable[..., Any], check: Callable[[Any], Awaitable[None]], *, prioritized: bool
) -> Callable[..., Any]:
    async def guarded(
        prompt: Any, sampling_params: Any, request_id: str, *, priority: int = 0, **more: Any
    ) -> AsyncIterator[Any]:
        call = CURRENT.get() or Call(request_id)
        await check(sampling_params)
        if prioritized:
            priority = call.key.priority * _RANKS + call.rank
        call.engine_ids.append(request_id)
        outputs = generate(prompt, sampling_params, request_id, priority=priority, **more)
        counter = _TokenCounter(call, cumulative=vllm_compat.is_cumulative(sampling_params))
        async with aclosing(outputs):
            async for output in outputs:
                counter.add(output)
                yield output
                if output.finished:
                    _note_times(call, output.metrics)

    return guarded


def _note_times(call: Call, stats: Any) -> None:
    """`stats`: vLLM's of a request that is done; None where it keeps none."""
    if stats is not None and stats.first_token_ts:
        call.saw_times(
            queued=stats.queued_ts,
            scheduled=stats.scheduled_ts,
            first=stats.first_token_ts,
            last=stats.last_token_ts,
        )


def _check_prompt_logprobs(num_best: int | None, has_prompt_logprobs: bool) -> None:
    if num_best is None:
        return
    if not has_prompt_logprobs:
        raise vllm_compat.invalid_request(
            "prompt_logprobs, and echo with logprobs, are not supported by this runtime: what was "
            "compiled for a device has logits of a prompt's last position only",
            parameter="prompt_logprobs",
        )
    if not 0 <= num_best <= _MOST_BEST:
        raise vllm_compat.invalid_request(
            f"prompt_logprobs must be from 0 to {_MOST_BEST} here, got {num_best}",
            parameter="prompt_logprobs",
        )


def _check_greedy(sampling_params: Any) -> None:
    name = needs_logits(sampling_params)
    if name:
        raise vllm_compat.invalid_request(
            f"{name} is not supported with speculation.method fused or eagle: the device's graphs "
            "choose each token greedily, and bring no logits; leave it out (temperature must be "
            "0, its default here)",
            parameter=name,
        )


async def _check_grammar(grammars: GrammarCompiler, kind: str, text: str) -> None:
    try:
        await grammars.check(kind, text)
    except GrammarRefused as error:
        raise vllm_compat.invalid_request(str(error), parameter="structured_outputs") from error


class _TokenCounter:
    """Adds one request's tokens to a call; outputs may hold all tokens so far or new ones."""

    def __init__(self, call: Call, *, cumulative: bool) -> None:
        self._call = call
        self._cumulative = cumulative
        self._seen: dict[int, int] = {}
        self._has_prompt = False

    def add(self, output: Any) -> None:
        """Count what `output` has that earlier ones had not."""
        if not self._has_prompt:
            self._has_prompt = True
            self._call.prompt_tokens += len(output.prompt_token_ids or ())
        for answer in output.outputs:
            num_tokens = len(answer.token_ids)
            if num_tokens:
                self._call.saw_token()
            if self._cumulative:
                num_tokens -= self._seen.get(answer.index, 0)
                self._seen[answer.index] = len(answer.token_ids)
            self._call.output_tokens += num_tokens
