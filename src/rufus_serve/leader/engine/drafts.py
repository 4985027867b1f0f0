"""`Drafter`: which tokens are tried ahead of a step, and for which requests that pays.

A step costs its fixed part and a little for each token, so a draft pays if it is likelier to come
true than what its token adds to the step's time, measured in tokens that the step brings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rufus_serve.leader.engine.ngram import lookup

Array = np.ndarray
_TOKEN_COST = 1 / 24
"""Of one more token, in fixed parts of a step (SmolLM2-135M in bfloat16, two cores of an EPYC)."""
_KEY_COST = 1 / 8000
"""Likewise of each key that it sees."""
_MEMORY = 0.97
"""Weight of what was seen a token ago."""
_FORGETTING = 0.995
"""Likewise for each draft not tried, so that it is tried again now and then."""


class Chance:
    """How likely a request's next draft comes true, from those before it."""

    def __init__(self) -> None:
        self._tried = self._true = 0.0

    @property
    def value(self) -> float:
        """One half before anything is known."""
        return (self._true + 1.0) / (self._tried + 2.0)

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Drafts came true up to the first that did not; those behind it say nothing."""
        for place in range(min(num_accepted + 1, num_drafted)):
            self._tried = self._tried * _MEMORY + 1.0
            self._true = self._true * _MEMORY + (place < num_accepted)

    def fade(self) -> None:
        """Nothing was tried."""
        self._tried *= _FORGETTING
        self._true *= _FORGETTING


@dataclass(frozen=True)
class Text:
    """A request that drafts are wanted for."""

    tokens: Array
    """[L] prompt and output so far."""
    room: int
    """Most drafts that its step may hold."""


class Drafter:
    """Of one engine; step thread only."""

    def __init__(self, *, shortest: int, longest: int, are_free: bool = False) -> None:
        """`shortest` and `longest` are numbers of tokens to look up, as in `lookup`.

        `are_free` as `RuntimeInfo.drafts_are_free`.
        """
        self._shortest, self._longest, self._are_free = shortest, longest, are_free
        self._chances: dict[str, Chance] = {}

    def propose(self, texts: Mapping[str, Text], *, num_rows: int) -> dict[str, list[int]]:
        """Drafts worth trying in a step of `num_rows` requests, for some of `texts`."""
        found = {req_id: self._look_up(text) for req_id, text in texts.items()}
        chances = {
            req_id: self._chances.setdefault(req_id, Chance())
            for req_id, drafts in found.items()
            if drafts
        }
        options = {
            req_id: _Option(chance.value, _cost(texts[req_id]), len(found[req_id]))
            for req_id, chance in chances.items()
        }
        if self._are_free:
            counts = {req_id: option.number for req_id, option in options.items()}
        else:
            counts = _worthwhile(options, num_rows)
        for req_id, chance in chances.items():
            if not counts[req_id]:
                chance.fade()
        return {req_id: found[req_id][:count] for req_id, count in counts.items() if count}

    def observe(self, req_id: str, num_drafted: int, num_accepted: int) -> None:
        """What became of a request's drafts."""
        self._chances[req_id].observe(num_drafted, num_accepted)

    def forget(self, req_ids: Iterable[str]) -> None:
        """These requests are over."""
        for req_id in req_ids:
            self._chances.pop(req_id, None)

    def _look_up(self, text: Text) -> list[int]:
        if text.room < 1:
            return []
        return lookup(text.tokens, text.room, shortest=self._shortest, longest=self._longest)


class _Option(NamedTuple):
    """Drafts of one request that might be tried."""

    chance: float
    cost: float
    number: int


def _cost(text: Text) -> float:
    return _TOKEN_COST + _KEY_COST * len(text.tokens)


def _worthwhile(options: Mapping[str, _Option], num_rows: int) -> dict[str, int]:
    """How many of each request's drafts pay; what brings most for its cost comes first."""
    counts = dict.fromkeys(options, 0)
    places = sorted(
        ((option.chance**place / option.cost, req_id)
         for req_id, option in options.items() for place in range(1, option.number + 1)),
        reverse=True,
    )  # fmt: skip
    expected, spent = float(num_rows), 1.0 + _TOKEN_COST * num_rows
    for worth, req_id in places:
        if worth * spent <= expected:
            break
        counts[req_id] += 1
        expected += worth * options[req_id].cost
        spent += options[req_id].cost
    return counts
