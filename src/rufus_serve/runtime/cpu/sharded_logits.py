"""`ShardedLogits`: a step's logits where each follower holds its share of the vocabulary."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rufus_serve.protocol.messages import Array, Candidates, RowWants
from rufus_serve.runtime.candidates import merge, pick
from rufus_serve.shard.partition import Span

Gather = Callable[[torch.Tensor, Sequence[int]], list[torch.Tensor] | None]
"""As `Communicator.gather`."""


class ShardedLogits:
    """See `StepLogits`. Candidates need no whole rows: each follower sends its own best."""

    def __init__(self, share: torch.Tensor, ranges: Sequence[Span], *, own: Span, gather: Gather):
        self._share = share
        """[R, size of `own`]"""
        self._ranges = ranges
        self._own = own
        self._gather = gather

    @property
    def num_rows(self) -> int:
        """R."""
        return self._share.shape[0]

    def rows(self, rows: Array) -> Array | None:
        """See `StepLogits.rows`."""
        chosen = self._share[torch.from_numpy(np.asarray(rows, np.int64))]
        parts = self._gather(chosen, [each.size for each in self._ranges])
        if parts is None:
            return None
        whole = np.empty((len(rows), self._ranges[-1].stop), np.float32)
        target = torch.from_numpy(whole)
        for share, part in zip(self._ranges, parts, strict=True):
            target[:, share.start : share.stop] = part
        return whole

    def candidates(self, wants: RowWants) -> Candidates | None:
        """See `StepLogits.candidates`."""
        own = pick(self._share.float().numpy(), wants, first_id=self._own.start)
        if len(self._ranges) == 1:
            return own
        words = torch.from_numpy(_as_words(own)).unsqueeze(0)
        parts = self._gather(words, [words.shape[1]] * len(self._ranges))
        if parts is None:
            return None
        return merge([_of_words(part[0].numpy(), wants) for part in parts], wants)


def _as_words(candidates: Candidates) -> Array:
    """All arrays as one of int32, whose size the wants alone decide."""
    arrays = (
        candidates.log_totals, candidates.logits, candidates.ids, candidates.token_logits,
    )  # fmt: skip
    return np.concatenate([array.reshape(-1).view(np.int32) for array in arrays])


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
