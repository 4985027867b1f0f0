"""`TokenEdits`: how a request's parameters change the logits of certain tokens.

All that vLLM's logits processors do, on the few tokens that they touch. Values are float32 and
the operations vLLM's own, in its order, so that the outcome has the same bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rufus_serve.leader.engine.column import Column

Array = np.ndarray


class TokenEdits:
    """Of one request; the step thread asks it at each of the request's steps.

    `outputs` is the request's live list of tokens generated so far.
    """

    def __init__(self, params: Any, prompt: Sequence[int], outputs: list[int]) -> None:
        self._params = params
        self._outputs = outputs
        self._num_counted = 0
        self._bad_words: list[list[int]] = params.bad_words_token_ids or []
        self._penalizes_prompt = params.repetition_penalty != 1.0
        self._penalizes = self._penalizes_prompt or bool(
            params.presence_penalty or params.frequency_penalty
        )
        self.only_these = bool(params.allowed_token_ids)
        """No other token may come."""
        self.names_more = self._penalizes and not self.only_these
        """Whether each output is one more token whose logits change."""
        ids = self._named(prompt)
        self._place = {token: place for place, token in enumerate(ids.tolist())}
        self._ids = Column(ids)
        self._counts = Column(np.zeros(len(ids), np.int64))
        self._from_prompt = Column(np.isin(ids, prompt) & self._penalizes_prompt)
        biases = params.logit_bias or {}
        self._bias = Column(np.array([biases.get(i, 0.0) for i in ids.tolist()], np.float32))
        self._stops = Column(np.isin(ids, list(params.all_stop_token_ids)))

    @property
    def token_ids(self) -> Array:
        """[E] int32, the tokens whose logits may change."""
        self._count_outputs()
        return self._ids.values

    def expect(self, tokens: Sequence[int]) -> None:
        """These may be the next outputs: what is asked for now holds once they have come."""
        self._count_outputs()
        if self.names_more:
            self._touch(tokens)

    def apply(self, logits: Array, *, stops_may_come: bool = False) -> Array:
        """Changed `logits` [E] of `token_ids`, as last asked for.

        No outputs may have come since but the expected ones.
        """
        self._count_outputs()
        logits = logits.copy()
        for word in self._bad_words:
            *before, last = word
            if last in self._place and self._ends_with(before):
                logits[self._place[last]] = -np.inf
        if len(self._outputs) < self._params.min_tokens and not stops_may_come:
            logits[self._stops.values] = -np.inf
        logits += self._bias.values
        if self._penalizes:
            self._penalize(logits)
        return logits

    def _penalize(self, logits: Array) -> None:
        counts = self._counts.values
        came = counts > 0
        if self._penalizes_prompt:
            factor = np.float32(self._params.repetition_penalty)
            scale = np.where(logits > 0, np.float32(1.0) / factor, factor)
            logits *= np.where(came | self._from_prompt.values, scale, np.float32(1.0))
        logits -= np.float32(self._params.frequency_penalty) * counts.astype(np.float32)
        logits -= np.float32(self._params.presence_penalty) * came

    def _ends_with(self, tokens: Sequence[int]) -> bool:
        return not tokens or self._outputs[-len(tokens) :] == tokens

    def _named(self, prompt: Sequence[int]) -> Array:
        """Tokens that are touched from the beginning, [E] int32, rising."""
        params = self._params
        if self.only_these:
            return np.unique(np.array(params.allowed_token_ids, np.int32))
        named = {word[-1] for word in self._bad_words} | set(params.logit_bias or ())
        if params.min_tokens:
            named |= params.all_stop_token_ids
        if self._penalizes_prompt:
            named |= set(prompt)
        return np.array(sorted(named), np.int32)

    def _count_outputs(self) -> None:
        if not self._penalizes:
            return
        fresh = self._outputs[self._num_counted :]
        self._num_counted += len(fresh)
        if not self.only_these:
            self._touch(fresh)
        for token in fresh:
            if token in self._place:
                self._counts.values[self._place[token]] += 1

    def _touch(self, tokens: Sequence[int]) -> None:
        """Name `tokens` as well, which nothing but penalties knows."""
        tokens = [token for token in dict.fromkeys(tokens) if token not in self._place]
        if not tokens:
            return
        size = len(self._place)
        self._place |= {token: size + offset for offset, token in enumerate(tokens)}
        self._ids.extend(len(tokens), tokens)
        for column in (self._counts, self._from_prompt, self._bias, self._stops):
            column.extend(len(tokens))
