"""`ShardedLogits`: a step's logits where each follower holds its share of the vocabulary."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from rufus_serve.protocol.messages import (
    Array,
    Candidates,
    PromptScores,
    PromptWants,
    RowWants,
)
from rufus_serve.runtime import prompt_scores
from rufus_serve.runtime.candidates import counts_of_shares, merge, pick, pick_shares
from rufus_serve.shard.decoder import Readout
from rufus_serve.shard.partition import Span

_CHUNK = 64
"""Tokens of a prompt whose logits exist at a time."""


@dataclass(frozen=True)
class Place:
    """This follower among those of its group."""

    ranges: Sequence[Span]
    """Each one's share of the vocabulary."""
    node_rank: int
    gather: Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor] | None]
    """As `Communicator.gather`."""
    all_reduce: Callable[[torch.Tensor], torch.Tensor]
    """As `Communicator.all_reduce`."""

    @property
    def own(self) -> Span:
        """This follower's share."""
        return self.ranges[self.node_rank]

    @property
    def is_alone(self) -> bool:
        """Whether it holds the whole vocabulary."""
        return len(self.ranges) == 1

    def gather_words(self, words: Array) -> list[Array] | None:
        """On node rank 0 everyone's `words` [n] int32, else None."""
        row = torch.from_numpy(words).unsqueeze(0)
        parts = self.gather(row, [row.shape[1]] * len(self.ranges))
        return None if parts is None else [part[0].numpy() for part in parts]


class ShardedLogits:
    """See `StepLogits`. Candidates need no whole rows: each follower sends its own best."""

    def __init__(self, readout: Readout, last_tokens: torch.Tensor, place: Place) -> None:
        self._readout = readout
        self._last_tokens = last_tokens
        self._place = place

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self._last_tokens)

    @functools.cached_property
    @torch.inference_mode()
    def _share(self) -> torch.Tensor:
        """[R, V share]"""
        return self._readout(self._last_tokens)

    def rows(self, rows: Array) -> Array | None:
        """See `StepLogits.rows`."""
        ranges = self._place.ranges
        chosen = self._share[torch.from_numpy(np.asarray(rows, np.int64))]
        parts = self._place.gather(chosen, [each.size for each in ranges])
        if parts is None:
            return None
        whole = np.empty((len(rows), ranges[-1].stop), np.float32)
        target = torch.from_numpy(whole)
        for share, part in zip(ranges, parts, strict=True):
            target[:, share.start : share.stop] = part
        return whole

    def candidates(self, wants: RowWants) -> Candidates | None:
        """See `StepLogits.candidates`."""
        if self._place.is_alone:
            return pick_shares(self._share.numpy(), wants)
        counts = counts_of_shares(wants)
        asked = msgspec.structs.replace(wants, num_candidates=counts)
        own = pick(self._share.numpy(), asked, first_id=self._place.own.start)
        parts = self._place.gather_words(_as_words(own))
        if parts is None:
            return None
        return merge([_of_words(part, asked) for part in parts], wants, counts)

    def prompt_scores(self, wants: PromptWants) -> PromptScores | None:
        """See `StepLogits.prompt_scores`; of the logits no more than a chunk exists at a time."""
        starts = range(0, len(wants.next_ids), _CHUNK)
        own = prompt_scores.joined([self._score(start, wants) for start in starts])
        if self._place.is_alone:
            return own
        parts = self._place.gather_words(_scores_as_words(own))
        if parts is None:
            return None
        return prompt_scores.merge([_scores_of_words(part, wants) for part in parts])

    @torch.inference_mode()
    def _score(self, start: int, wants: PromptWants) -> PromptScores:
        next_ids = wants.next_ids[start : start + _CHUNK]
        first_id = self._place.own.start
        logits = self._readout(torch.arange(start, start + len(next_ids))).numpy()
        held = torch.from_numpy(prompt_scores.logits_of(logits, next_ids, first_id=first_id))
        next_logits = self._place.all_reduce(held).numpy()
        return prompt_scores.score(
            logits, next_ids, next_logits, num_best=wants.num_best, first_id=first_id
        )


def _as_words(candidates: Candidates) -> Array:
    """All arrays as one of int32, whose size the wants alone decide."""
    return _joined_words(
        candidates.log_totals, candidates.logits, candidates.ids, candidates.token_logits
    )


def _of_words(words: Array, wants: RowWants) -> Candidates:
    num_listed = int(wants.num_candidates.clip(0).sum())
    num_totals = 2 * wants.temperatures.size
    stops = np.cumsum([num_totals, num_listed, num_listed])
    totals, logits, ids, named = np.split(words, stops)
    return Candidates(
        logits=logits.view(np.float32),
        ids=ids,
        log_totals=totals.copy().view(np.float64).reshape(-1, 2),
        token_logits=named.view(np.float32),
    )


def _scores_as_words(scores: PromptScores) -> Array:
    return _joined_words(scores.log_totals, scores.logits, scores.ids, scores.ranks)


def _scores_of_words(words: Array, wants: PromptWants) -> PromptScores:
    count, width = len(wants.next_ids), 1 + wants.num_best
    stops = np.cumsum([2 * count, count * width, count * width])
    totals, logits, ids, ranks = np.split(words, stops)
    return PromptScores(
        ids=ids.reshape(count, width),
        logits=logits.view(np.float32).reshape(count, width),
        log_totals=totals.copy().view(np.float64),
        ranks=ranks,
    )


def _joined_words(*arrays: Array) -> Array:
    return np.concatenate([array.reshape(-1).view(np.int32) for array in arrays])
