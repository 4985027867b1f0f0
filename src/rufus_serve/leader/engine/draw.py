"""Which token a row draws, by one number per row; pure numpy.

A row's tokens lie side by side, the likeliest first, each as wide as its probability, and the
row's uniform number points at one. So the token depends on the row and its number alone: not
on other rows, and not on how many of the first tokens are known, if the number points at them.

Shape legend: R rows, K known tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rufus_serve.runtime.candidates import pick, wants_of_row

Array = np.ndarray
UNDECIDED = -1
# Most rows that come in full are those that 256 candidates did not decide.
_FIRST = 2048
_WIDENING = 8
_NO_TOKENS = np.empty(0, np.int32)


@dataclass(frozen=True)
class Ranked:
    """The first tokens of rows, in falling order of their logits."""

    logits: Array
    """[R, K] float32, divided by the row's temperature; -inf past the last known token."""
    floor: Array
    """[R] no token that is not known lies above; -inf if all are known."""
    log_total: Array
    """[R] float64, logsumexp of the whole row, divided likewise."""


@dataclass(frozen=True)
class Filters:
    """Which tokens rows may draw; as in vLLM, min-p comes first and top-p last."""

    top_k: Array
    """[R] 0 for all."""
    top_p: Array
    """[R] 1 for all."""
    min_p: Array
    """[R] 0 for all."""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, float, float]]) -> "Filters":
        """Of each row's (top_k, top_p, min_p)."""
        top_k, top_p, min_p = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(np.array(top_k, np.int64), np.array(top_p, float), np.array(min_p, float))

    def __getitem__(self, rows: Array) -> "Filters":
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


# A row without any finite logit ends in NaN, which compares with nothing.
@np.errstate(invalid="ignore", over="ignore")
def choose(ranked: Ranked, filters: Filters, uniforms: Array) -> Array:
    """Columns of `ranked` that `uniforms` [R] of [0, 1) point at.

    UNDECIDED where the token, or the end of what a filter keeps, may lie beyond the known ones.
    """
    logits, floor = ranked.logits, ranked.floor[:, np.newaxis]
    peak = logits[:, :1].astype(np.float64)
    weights = np.exp(logits - peak)
    floor_weight = np.exp(floor - peak)[:, 0]
    total = np.exp(ranked.log_total - peak[:, 0])
    reach = np.cumsum(weights, axis=1)
    num_kept, is_whole, is_open = _keep_best(weights, filters, floor_weight)
    total = np.where(is_whole, _at(reach, num_kept), total)
    edge = (filters.top_p * total)[:, np.newaxis]
    in_nucleus = ((reach - weights < edge).sum(axis=1)).clip(1)
    narrows = filters.top_p < 1.0
    num_kept = np.where(narrows, np.minimum(num_kept, in_nucleus), num_kept)
    is_open |= narrows & ~is_whole & (in_nucleus == logits.shape[1])
    is_whole |= narrows
    total = np.where(narrows, _at(reach, num_kept), total)
    chosen = (reach <= (uniforms * total)[:, np.newaxis]).sum(axis=1)
    chosen = np.where(is_whole, np.minimum(chosen, num_kept - 1), chosen)
    is_open |= (chosen >= logits.shape[1]) | ~np.isfinite(peak[:, 0])
    return np.where(is_open, UNDECIDED, chosen)


def _keep_best(weights: Array, filters: Filters, floor_weight: Array) -> tuple[Array, Array, Array]:
    """What min-p and top-k leave of rows.

    Returns:
        How many of the first tokens they keep [R], whether these are all that is kept [R], and
        whether that cannot be told [R].
    """
    all_known = floor_weight == 0.0
    num_positive = (weights > 0).sum(axis=1)
    if not (filters.top_k.any() or filters.min_p.any()):
        return num_positive.clip(1), all_known, np.zeros(len(weights), bool)
    num_known = weights.shape[1]
    by_min = (weights >= filters.min_p[:, np.newaxis]).sum(axis=1)
    place = np.minimum(np.where(filters.top_k > 0, filters.top_k, num_known), num_known) - 1
    last = np.take_along_axis(weights, place[:, np.newaxis], axis=1)
    # Tokens as good as the last one stay, as in vLLM.
    by_top = np.where(filters.top_k > 0, (weights >= last).sum(axis=1), num_known)
    is_whole = all_known | (floor_weight < filters.min_p)
    is_cut = (filters.top_k > 0) & (filters.top_k <= num_known) & (floor_weight < last[:, 0])
    is_whole |= is_cut
    is_open = ((filters.min_p > 0) | (filters.top_k > 0)) & ~is_whole
    # A min-p that is not met within the known tokens does not narrow what top-k cuts there.
    return np.minimum(np.minimum(by_min, by_top), num_positive).clip(1), is_whole, is_open


def _at(reach: Array, counts: Array) -> Array:
    return np.take_along_axis(reach, counts[:, np.newaxis] - 1, axis=1)[:, 0]


def draw_from_whole(
    logits: Array, filters: Filters, uniforms: Array, *, first: int = _FIRST
) -> Array:
    """Token ids [R] drawn from whole rows `logits` [R, V], divided by their temperatures.

    A few of the best tokens decide nearly every row; the others are asked of ever more.
    """
    rows = np.arange(len(logits))[:, np.newaxis]
    tokens = [
        draw_from_row(logits[at], filters[row], uniforms[row], first=first)
        for at, row in enumerate(rows)
    ]
    return np.array(tokens, np.int64)


def draw_from_row(
    row: Array, filters: Filters, uniform: Array, *, temperature: float = 1.0, first: int = _FIRST
) -> int:
    """The token that `uniform` [1] draws from a whole `row` [V], which is not changed."""
    vocab_size, count = len(row), first
    while True:
        count = min(count, vocab_size)
        best = pick(row[np.newaxis], wants_of_row(count, (temperature, 0.0), _NO_TOKENS))
        logits = best.logits[np.newaxis] / np.float32(temperature)
        floor = np.full(1, -np.inf, np.float32) if count == vocab_size else logits[:, -1]
        (column,) = choose(Ranked(logits, floor, best.log_totals[:, 0]), filters, uniform)
        if column != UNDECIDED or count == vocab_size:
            return int(best.ids[max(column, 0)])
        count *= _WIDENING
