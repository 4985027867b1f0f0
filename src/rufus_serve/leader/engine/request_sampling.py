"""`RequestSampling`: how one request draws its tokens, and what it needs of each row for that."""

from collections.abc import Sequence
from typing import Any

from rufus_serve.kernels.candidate_draw import draw_params
from rufus_serve.leader.engine.dice import any_seed, uniform
from rufus_serve.leader.engine.step_builder import IN_FULL, Want
from rufus_serve.leader.engine.token_edits import TokenEdits

DEFAULT_CANDIDATES = 256
_MOST_CANDIDATES = 1024
# Naming a token costs 8 bytes, a row in full 4 a token and a copy.
_MOST_NAMED_SHARE = 16
_GREEDY_BELOW = 1e-5
_A_LITTLE_MORE = 1.00001
"""Totals are sums of float32 exponentials."""


class RequestSampling:
    """Made of vLLM's sampling parameters; `outputs` is the request's live list of tokens."""

    def __init__(
        self,
        params: Any,
        prompt: Sequence[int],
        outputs: list[int],
        *,
        vocab_size: int,
        device_candidates: int = 0,
    ) -> None:
        """`device_candidates` as in `RuntimeInfo`."""
        self._vocab_size = vocab_size
        self._usual = min(DEFAULT_CANDIDATES, device_candidates or DEFAULT_CANDIDATES)
        self._outputs = outputs
        self.edits = TokenEdits(params, prompt, outputs)
        self.is_greedy: bool = params.temperature < _GREEDY_BELOW
        self.temperature = 1.0 if self.is_greedy else float(params.temperature)
        self.top_k: int = params.top_k if 0 < params.top_k < vocab_size else 0
        self.top_p = float(params.top_p)
        self.min_p = float(params.min_p)
        self.num_logprobs: int | None = params.logprobs
        self.has_grammar: bool = params.structured_outputs is not None
        self.needs_vllm = _needs_vllm(params)
        """Whether only vLLM's own sampler knows what is asked."""
        # Top-k and min-p leave what is all known, or they are not decided.
        self.needs_total = not (self.is_greedy or self.top_k or self.min_p or self.edits.only_these)
        """Whether the draw needs the total of the row."""
        self.draw_params = self._draw_params()
        """For the kernel that draws."""
        self._seed = any_seed() if params.seed is None else int(params.seed)
        self._uniform = (-1, 0.0)
        self._count = self._num_candidates()
        self._total_temperatures = self._temperatures()
        self._steady_share = self._share_of_filters()
        is_steady = self._steady_share is not None and not self.edits.names_more
        self._steady_want = self._want(1) if is_steady else None
        self.takes_best = self._takes_best()
        """Whether its token is always the row's best one, and nothing else is asked."""

    def uniform(self, ahead: int = 0) -> float:
        """The number of [0, 1) that the next token is drawn by, or one so many behind it."""
        position = len(self._outputs) + ahead
        if self._uniform[0] != position:
            self._uniform = position, uniform(self._seed, position)
        return self._uniform[1]

    @property
    def can_have_drafts(self) -> bool:
        """Whether tokens after the next one can be drawn in the same step.

        A grammar's mask is known for the next token alone, and a row in full costs more than a
        draft spares.
        """
        return not self.has_grammar and self._count >= 0

    def expect(self, drafts: Sequence[int]) -> None:
        """The next tokens may be these; what is wanted then serves the ones after them as well."""
        self.edits.expect(drafts)

    def want(self, num_tokens: int = 1) -> Want:
        """What the next token needs, or as many as that."""
        return self._want(num_tokens) if self._steady_want is None else self._steady_want

    def _want(self, num_tokens: int) -> Want:
        token_ids = self.edits.token_ids
        if self._count < 0 or len(token_ids) > self._vocab_size // _MOST_NAMED_SHARE:
            return IN_FULL
        share = self._steady_share
        if share is None:
            share = max(self.uniform(ahead) for ahead in range(num_tokens))
        count = min(self._count, self._vocab_size)
        return Want(count, self._total_temperatures, token_ids, share * _A_LITTLE_MORE)

    def _takes_best(self) -> bool:
        return (
            self.is_greedy
            and not (self.has_grammar or self.edits.names_more or self.edits.only_these)
            and self.num_logprobs is None
            and not len(self.edits.token_ids)
        )

    def _draw_params(self) -> bytes:
        return draw_params(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            is_greedy=self.is_greedy,
            only_named=self.edits.only_these,
            needs_total=self.needs_total,
        )

    def _share_of_filters(self) -> float | None:
        """How much of a row's total candidates should hold; None: as its number says."""
        if not self.needs_total or self.has_grammar or self._count < 0:
            return 0.0
        return self.top_p if self.top_p < 1.0 else None

    def _num_candidates(self) -> int:
        wants_logprobs = self.num_logprobs is not None
        if (self.has_grammar and wants_logprobs) or self.top_k >= _MOST_CANDIDATES:
            # Logprobs are of what the grammar leaves, whose total no candidates tell.
            return -1
        # Two more than are told, so that the chosen one's rank among equals is known.
        told = 0 if self.num_logprobs is None else self.num_logprobs + 2
        if self.edits.only_these:
            return told
        if self.is_greedy:
            return max(told, self._usual if self.has_grammar else 1)
        # One more than top-k keeps, so that ties with the last are seen.
        return max(told, self.top_k + 1 if self.top_k else self._usual)

    def _temperatures(self) -> tuple[float, float]:
        """At which the row's total is needed: for the draw, and for logprobs."""
        for_draw = self.temperature if self.needs_total else 0.0
        return for_draw, 0.0 if self.num_logprobs is None else 1.0


def _needs_vllm(params: Any) -> bool:
    return (
        params.logprobs == -1
        or params.logprob_token_ids is not None
        or params.thinking_token_budget is not None
    )
