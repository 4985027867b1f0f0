"""The best tokens of rows of logits, and the rows' totals; without torch, on whichever side asks.

Shape legend: R rows, V vocabulary, K candidates of a row, E tokens named for a row.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rufus_serve.kernels.candidate_search import candidate_search
from rufus_serve.protocol.messages import Array, Candidates, RowWants

# The fewer tokens a slice holds, the fewer lie above the bound that slices give. Of many slices
# numpy takes the largest values side by side.
_SLICES_PER_CANDIDATE = 8
_MIN_SLICES = 1024
_SUMMED_TOGETHER = 32


class _Threads:
    """How many search rows together; a process's own to say."""

    count = 1


def search_by(num_threads: int) -> None:
    """Have so many threads of this process search the rows of a step together, from now on."""
    _Threads.count = num_threads


def best_ids(row: Array, count: int) -> Array:
    """Ids of the `count` largest logits of `row` [V], falling; equals in the order of their ids.

    A third of a partition's time: of V / n interleaved slices, `count` have a largest value at
    or above the `count`-th of these, so nothing below it is among the best.
    """
    count = min(count, len(row))
    if count < 1:
        return np.empty(0, np.int64)
    if count == 1 and not np.isnan(row[best_one := row.argmax()]):
        return np.array([best_one])
    num_slices = min(len(row), max(_MIN_SLICES, _SLICES_PER_CANDIDATE * count))
    depth = len(row) // num_slices
    peaks = row[: depth * num_slices].reshape(depth, num_slices).max(axis=0)
    bound = np.partition(peaks, num_slices - count)[num_slices - count]
    if bound == -np.inf:
        ids = np.flatnonzero(row > bound)
        rest = np.flatnonzero(row == bound)[: max(0, count - ids.size)]
        ids = np.concatenate((ids, rest))
    else:
        ids = np.flatnonzero(row >= bound)
    if ids.size < count:
        # NaN compares with nothing; it comes last.
        ids = np.arange(len(row))
    best: Array = ids[np.argsort(-row[ids], kind="stable")[:count]]
    return best


def log_sum_exp(row: Array, temperature: float) -> float:
    """Logarithm of the sum of exp(`row` / `temperature`), over `row` [V] float32."""
    scaled = row if temperature == 1.0 else row / np.float32(temperature)
    peak = scaled.max(initial=-np.inf)
    if not np.isfinite(peak):
        return float(peak)
    return float(np.log(_sum(np.exp(scaled - peak))) + np.float64(peak))


def _sum(row: Array) -> np.float64:
    """Sum of `row` [V]; a few at a time in float32, which is quick, and those in float64."""
    width = len(row) // _SUMMED_TOGETHER
    whole = width * _SUMMED_TOGETHER
    few = row[:whole].reshape(_SUMMED_TOGETHER, width).sum(axis=0)
    total: np.float64 = few.sum(dtype=np.float64) + row[whole:].sum(dtype=np.float64)
    return total


def pick(logits: Array, wants: RowWants, *, first_id: int = 0) -> Candidates:
    """What `wants` asks of `logits` [R, V], or of a share of them whose ids begin at `first_id`.

    Logits of named tokens are written to meanwhile, and put back. Rows wanted in full bring no
    candidates. What a share does not hold, named tokens or enough candidates, comes as -inf.
    """
    search = candidate_search(_Threads.count)
    if search is not None:
        return search.pick(logits, wants, first_id=first_id)
    return pick_by_numpy(logits, wants, first_id=first_id)


def pick_by_numpy(logits: Array, wants: RowWants, *, first_id: int = 0) -> Candidates:
    """`pick` where there are no kernels; totals differ in their last bits."""
    best, ids, totals, named = [], [], [], []
    for row, (count, temperatures, token_ids) in zip(logits, rows_of(wants), strict=True):
        is_here = (token_ids >= first_id) & (token_ids < first_id + len(row))
        here = token_ids[is_here] - first_id
        of_named = np.full(len(token_ids), -np.inf, np.float32)
        of_named[is_here] = row[here]
        if here.size:
            row[here] = -np.inf
        found = best_ids(row, count)
        missing = max(0, count - len(found))
        best.append(np.pad(row[found], (0, missing), constant_values=-np.inf))
        ids.append(np.pad(found + first_id, (0, missing)))
        totals.append([log_sum_exp(row, each) if each else 0.0 for each in temperatures])
        named.append(of_named)
        if here.size:
            row[here] = of_named[is_here]
    return _of_rows(best, ids, totals, named)


def merge(shares: Sequence[Candidates], wants: RowWants) -> Candidates:
    """The candidates of whole rows, from those of all shares of the vocabulary."""
    best, ids = [], []
    stop = 0
    for count in wants.num_candidates.clip(0).tolist():
        here = slice(stop, stop := stop + count)
        all_logits = np.concatenate([share.logits[here] for share in shares])
        all_ids = np.concatenate([share.ids[here] for share in shares])
        order = np.lexsort((all_ids, -all_logits))[:count]
        best.append(all_logits[order])
        ids.append(all_ids[order])
    totals = np.logaddexp.reduce([share.log_totals for share in shares])
    named = np.maximum.reduce([share.token_logits for share in shares])
    return _of_rows(best, ids, np.where(wants.temperatures > 0, totals, 0.0), [named])


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of all rows, from those of some rows each."""
    return Candidates(
        logits=np.concatenate([part.logits for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        log_totals=np.concatenate([part.log_totals for part in parts]),
        token_logits=np.concatenate([part.token_logits for part in parts]),
    )


def rows_of(wants: RowWants) -> Iterator[tuple[int, list[float], Array]]:
    """Number of candidates, temperatures and named tokens of each row."""
    stops = np.cumsum(wants.num_token_ids)
    named = np.split(wants.token_ids, stops[:-1])
    return zip(wants.num_candidates.tolist(), wants.temperatures.tolist(), named, strict=True)


def whole_rows(wants: RowWants | None, num_rows: int) -> Array:
    """Indexes of the rows that are wanted in full."""
    return np.arange(num_rows) if wants is None else np.flatnonzero(wants.num_candidates < 0)


def _of_rows(
    best: Sequence[Array], ids: Sequence[Array], totals: object, named: Sequence[Array]
) -> Candidates:
    return Candidates(
        logits=np.concatenate(best).astype(np.float32),
        ids=np.concatenate(ids).astype(np.int32),
        log_totals=np.array(totals, np.float64),
        token_logits=np.concatenate(named).astype(np.float32),
    )
