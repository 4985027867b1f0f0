"""`TokenEdits`: how a request's parameters change the logits of certain tokens.

All that vLLM's logits processors do, on the few tokens that they touch. Values are float32 and
the operations vLLM's own, in its order, so that the outcome has the same bits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from rufus_serve.leader.engine.column import Column

Array = np.ndarray
_NAMED = np.dtype(
    [("id", np.int32), ("count", np.int32), ("bias", np.float32), ("from_prompt", bool),
     ("stops", bool)],
    align=True,
)  # fmt: skip
"""A token that is touched: how often it came, and whether it was in the prompt and ends a text."""


class TokenEdits:
    """Of one request; the step thread asks it at each of the request's steps.

    `outputs` is the request's live list of tokens generated so far.
    """

    def __init__(self, params: Any, prompt: Sequence[int], outputs: list[int]) -> None:
        self._params = params
        self._outputs = outputs
        self._num_counted = 0
        self._bad_words: list[list[int]] = params.bad_words_token_ids or []
        self.may_forbid = bool(self._bad_words or params.min_tokens)
        self._penalizes_prompt = params.repetition_penalty != 1.0
        self.penalties = (
            params.repetition_penalty, params.frequency_penalty, params.presence_penalty,
        )  # fmt: skip
        self.penalizes = self._penalizes_prompt or bool(
            params.presence_penalty or params.frequency_penalty
        )
        self.only_these = bool(params.allowed_token_ids)
        """No other token may come."""
        self.names_more = self.penalizes and not self.only_these
        """Whether each output is one more token whose logits change."""
        ids = self._named(prompt)
        self._place = {token: place for place, token in enumerate(ids.tolist())}
        biases = params.logit_bias or {}
        named = np.zeros(len(ids), _NAMED)
        named["id"] = ids
        named["bias"] = [biases.get(token, 0.0) for token in ids.tolist()]
        named["from_prompt"] = np.isin(ids, prompt) & self._penalizes_prompt
        named["stops"] = np.isin(ids, list(params.all_stop_token_ids))
        self._tokens = Column(named)

    @property
    def token_ids(self) -> Array:
        """[E] int32, the tokens whose logits may change."""
        ids: Array = self.named()["id"]
        return ids

    def named(self) -> Array:
        """[E] of `_NAMED`, by now."""
        self._count_outputs()
        return self._tokens.values

    def expect(self, tokens: Sequence[int]) -> None:
        """These may be the next outputs: what is asked for now holds once they have come."""
        self._count_outputs()
        if self.names_more:
            self._touch(tokens)

    def apply(self, logits: Array, *, stops_may_come: bool = False) -> Array:
        """Changed `logits` [E] of `token_ids`, as last asked for.

        No outputs may have come since but the expected ones.
        """
        return changed_logits([self], logits, stops_may_come=stops_may_come)

    def forbid(self, logits: Array, *, stops_may_come: bool) -> None:
        """Take those of `logits` [E] away that may not come next."""
        for word in self._bad_words:
            *before, last = word
            if last in self._place and self._ends_with(before):
                logits[self._place[last]] = -np.inf
        if len(self._outputs) < self._params.min_tokens and not stops_may_come:
            logits[self._tokens.values["stops"]] = -np.inf

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
        if not self.penalizes or len(self._outputs) == self._num_counted:
            return
        fresh = self._outputs[self._num_counted :]
        self._num_counted += len(fresh)
        if not self.only_these:
            self._touch(fresh)
        counts = self._tokens.values["count"]
        for token in fresh:
            if token in self._place:
                counts[self._place[token]] += 1

    def _touch(self, tokens: Sequence[int]) -> None:
        """Name `tokens` as well, which nothing but penalties knows."""
        for token in tokens:
            if token not in self._place:
                self._place[token] = len(self._place)
                self._tokens.extend(1, np.array((token, 0, 0.0, False, False), _NAMED))


def changed_logits(
    requests: Sequence[TokenEdits], logits: Array, *, stops_may_come: bool = False
) -> Array:
    """Changed `logits` [sum of E] of the tokens of all `requests`, as `TokenEdits.apply`."""
    logits = logits.copy()
    named = [request.named() for request in requests]
    counts = [len(each) for each in named]
    stop = 0
    for request, count in zip(requests, counts, strict=True):
        start, stop = stop, stop + count
        if request.may_forbid:
            request.forbid(logits[start:stop], stops_may_come=stops_may_come)
    column = partial(_column, named)
    logits += column("bias")
    if any(request.penalizes for request in requests):
        penalties = [request.penalties for request in requests]
        repetition, frequency, presence = np.array(penalties, np.float32).T.repeat(counts, axis=1)
        num_times, was_in_prompt = column("count"), column("from_prompt")
        # A repetition penalty of 1, and others of 0, change nothing.
        came = num_times > 0
        scale = np.where(logits > 0, np.float32(1.0) / repetition, repetition)
        logits *= np.where(came | was_in_prompt, scale, np.float32(1.0))
        logits -= frequency * num_times.astype(np.float32)
        logits -= presence * came
    return logits


def _column(named: Sequence[Array], field: str) -> Array:
    """[sum of E] one field of what is `named`."""
    return np.concatenate([each[field] for each in named])
