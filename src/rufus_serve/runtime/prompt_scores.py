"""How likely a prompt's own tokens were, from shares of the logits behind them; numpy alone.

Shape legend: P positions, V share of the vocabulary, N best tokens of a position.
"""

from collections.abc import Sequence

import numpy as np

from rufus_serve.protocol.messages import Array, PromptScores
from rufus_serve.runtime.candidates import best_ids, log_sum_exp


def logits_of(logits: Array, ids: Array, *, first_id: int) -> Array:
    """[P] float32 of `ids` [P] in a share `logits` [P, V]; 0 where the share has no such token."""
    local = ids - first_id
    is_here = (local >= 0) & (local < logits.shape[1])
    found = logits[np.arange(len(ids)), local.clip(0, logits.shape[1] - 1)]
    return np.where(is_here, found, np.float32(0.0))


def score(
    logits: Array, next_ids: Array, next_logits: Array, *, num_best: int, first_id: int
) -> PromptScores:
    """What a share `logits` [P, V], whose ids begin at `first_id`, knows of its positions.

    `next_logits` [P] are of `next_ids`, whichever share holds them. A share with fewer than
    `num_best` tokens is filled up with -inf.
    """
    ids = np.zeros((len(logits), 1 + num_best), np.int32)
    values = np.full((len(logits), 1 + num_best), -np.inf, np.float32)
    ids[:, 0], values[:, 0] = next_ids, next_logits
    for place, row in enumerate(logits):
        best = best_ids(row, num_best)
        ids[place, 1 : 1 + len(best)] = best + first_id
        values[place, 1 : 1 + len(best)] = row[best]
    return PromptScores(
        ids=ids,
        logits=values,
        log_totals=np.array([log_sum_exp(row, 1.0) for row in logits], np.float64),
        ranks=(logits >= next_logits[:, np.newaxis]).sum(axis=1, dtype=np.int32),
    )


def merge(shares: Sequence[PromptScores]) -> PromptScores:
    """The scores of whole rows, from those of all shares of the vocabulary."""
    first, num_best = shares[0], shares[0].ids.shape[1] - 1
    ids = np.concatenate([share.ids[:, 1:] for share in shares], axis=1)
    logits = np.concatenate([share.logits[:, 1:] for share in shares], axis=1)
    best = np.lexsort((ids, -logits), axis=1)[:, :num_best]
    return PromptScores(
        ids=np.hstack((first.ids[:, :1], np.take_along_axis(ids, best, axis=1))),
        logits=np.hstack((first.logits[:, :1], np.take_along_axis(logits, best, axis=1))),
        log_totals=np.logaddexp.reduce([share.log_totals for share in shares]),
        ranks=np.add.reduce([share.ranks for share in shares], dtype=np.int32),
    )


def joined(parts: Sequence[PromptScores]) -> PromptScores:
    """Those of successive positions as one."""
    names = PromptScores.__struct_fields__
    return PromptScores(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
