"""The best tokens of rows of logits, and the rows' totals; without torch, on whichever side asks.

Shape legend: R rows, V vocabulary, K candidates of a row, E tokens named for a row.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from rufus_serve.kernels.candidate_search import candidate_search
from rufus_serve.protocol.messages import Array, Candidates, RowWants

# The fewer tokens a slice holds, the fewer lie above the bound that slices give. Of many slices
# numpy takes the largest values side by side.
_SLICES_PER_CANDIDATE = 8
_MIN_SLICES = 1024
_SUMMED_TOGETHER = 32
_WIDER = (2048, 8192)
"""How many candidates a row may have instead of those that are too few."""
_OF_LARGE_SHARES = ((0.5, 1024), (0.9, 4096))
"""From which share of a row on how many candidates of each share of the vocabulary are found."""
LAST_KEY = np.iinfo(np.int64).max
"""Behind all of `falling_keys`."""
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


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
    """The K candidates of `logits` [R, V], or of a share of them whose ids begin at `first_id`.

    Logits of named tokens are written to meanwhile, and put back. Rows wanted in full bring no
    candidates. What a share does not hold, named tokens or enough candidates, comes as -inf.
    """
    return _pick(logits, wants, first_id=first_id)[0]


def _pick(logits: Array, wants: RowWants, *, first_id: int = 0) -> tuple[Candidates, Array]:
    """`pick`, and how much of each row's total at the first temperature its candidates have."""
    search = candidate_search(_Threads.count)
    if search is not None:
        return search.pick(logits, wants, first_id=first_id)
    found = pick_by_numpy(logits, wants, first_id=first_id)
    return found, _held(found, wants)


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


def pick_shares(logits: Array, wants: RowWants) -> Candidates:
    """All that `wants` asks of whole `logits` [R, V]: of some rows more than K candidates."""
    found, held = _pick(logits, wants)
    if wants.shares is None or not (lacking := np.flatnonzero(held < wants.shares)).size:
        return found
    counts = wants.num_candidates.clip(0)
    logits_of = np.split(found.logits, counts.cumsum()[:-1])
    ids_of = np.split(found.ids, counts.cumsum()[:-1])
    for count in _WIDER:
        # No further token is larger than these, so more of them bring no more than in proportion.
        most = held[lacking] * (_WIDER[-1] / counts[lacking])
        lacking = lacking[most >= wants.shares[lacking]]
        if not lacking.size:
            break
        more, share = _pick(logits, _wants_of_some(lacking, count, wants))
        held[lacking] = share[lacking]
        for row, *best in zip(
            lacking.tolist(), more.logits.reshape(-1, count), more.ids.reshape(-1, count),
            strict=True,
        ):  # fmt: skip
            logits_of[row], ids_of[row] = best
        counts[lacking] = count
        lacking = lacking[held[lacking] < wants.shares[lacking]]
    for row in np.flatnonzero(counts > wants.num_candidates).tolist():
        needed = _num_holding_share(logits_of[row], found.log_totals[row, 0], wants, row)
        # A quarter more, for named tokens that have a part in the row's total, but lie below these.
        needed += needed // 4
        counts[row] = max(wants.num_candidates[row], min(counts[row], needed))
        logits_of[row], ids_of[row] = logits_of[row][: counts[row]], ids_of[row][: counts[row]]
    return msgspec.structs.replace(
        found, logits=np.concatenate(logits_of), ids=np.concatenate(ids_of), counts=counts
    )


def _num_holding_share(logits: Array, log_total: float, wants: RowWants, row: int) -> int:
    """How many of a row's `logits`, which fall, hold its share; one more than these if none do."""
    assert wants.shares is not None
    scaled = (logits / wants.temperatures[row, 0]).astype(np.float64)
    held = np.exp(scaled - log_total).cumsum()
    return int(np.searchsorted(held, wants.shares[row])) + 1


def _wants_of_some(rows: Array, count: int, wants: RowWants) -> RowWants:
    """So many candidates of some `rows`, and nothing of the others."""
    is_asked = np.zeros(len(wants.num_candidates), bool)
    is_asked[rows] = True
    return RowWants(
        num_candidates=np.where(is_asked, count, 0).astype(np.int32),
        temperatures=np.where(is_asked[:, np.newaxis], wants.temperatures, 0),
        num_token_ids=np.where(is_asked, wants.num_token_ids, 0),
        token_ids=wants.token_ids[np.repeat(is_asked, wants.num_token_ids)],
    )


def holds_share(found: Candidates, wants: RowWants) -> bool:
    """Whether the candidates of every row hold what `wants` asks of its total."""
    return wants.shares is None or bool((_held(found, wants) >= wants.shares).all())


def counts_of_shares(wants: RowWants) -> Array:
    """[R] candidates to find in each share of the vocabulary, for `merge`.

    More than K where much of a row is wanted: how much is known once they are merged.
    """
    counts = wants.num_candidates.clip(0)
    if wants.shares is not None:
        for share, count in _OF_LARGE_SHARES:
            counts[wants.shares > share] = count
        counts = np.maximum(counts, wants.num_candidates)
    return counts


def merge(shares: Sequence[Candidates], wants: RowWants, share_counts: Array) -> Candidates:
    """The candidates of whole rows, from those of all shares of the vocabulary.

    As many as hold what is wanted of a row, if they are all known; else K. `share_counts` [R]: how
    many candidates of a row each share brings.
    """
    best, ids = [], []
    stop = 0
    totals = np.logaddexp.reduce([share.log_totals for share in shares])
    for row, (count, share_count) in enumerate(
        zip(wants.num_candidates.clip(0).tolist(), share_counts.tolist(), strict=True)
    ):
        here = slice(stop, stop := stop + share_count)
        keys = [falling_keys(share.logits[here], share.ids[here]) for share in shares]
        logits_of_row, ids_of_row = of_keys(np.sort(np.concatenate(keys)))
        if wants.shares is not None and wants.shares[row] > 0:
            floor = max(share.logits[stop - 1] for share in shares)
            needed = _num_holding_share(logits_of_row, totals[row, 0], wants, row)
            if needed <= (logits_of_row > floor).sum():
                count = max(count, needed)  # noqa: PLW2901
        best.append(logits_of_row[:count])
        ids.append(ids_of_row[:count])
    named = np.maximum.reduce([share.token_logits for share in shares])
    found = _of_rows(best, ids, np.where(wants.temperatures > 0, totals, 0.0), [named])
    return _counted(found, ids, wants)


def joined(parts: Sequence[Candidates], wants: RowWants) -> Candidates:
    """The candidates of all rows that `wants` asked for, from those of one row each."""
    found = Candidates(
        logits=np.concatenate([part.logits for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        log_totals=np.concatenate([part.log_totals for part in parts]),
        token_logits=np.concatenate([part.token_logits for part in parts]),
    )
    return _counted(found, [part.ids for part in parts], wants)


def _counted(found: Candidates, ids: Sequence[Array], wants: RowWants) -> Candidates:
    """`found`, which says how many of each row's `ids` there are if these are not K."""
    counts = [len(each) for each in ids]
    is_as_wanted = counts == wants.num_candidates.clip(0).tolist()
    return found if is_as_wanted else msgspec.structs.replace(found, counts=np.array(counts))


def wants_of_row(
    count: int, temperatures: Array | Sequence[float], token_ids: Array, share: float = 0.0
) -> RowWants:
    """What is wanted of one row."""
    return RowWants(
        num_candidates=np.array([count], np.int32),
        temperatures=np.array([temperatures], np.float32),
        num_token_ids=np.array([len(token_ids)], np.int32),
        token_ids=token_ids,
        shares=np.array([share], np.float32) if share else None,
    )


@np.errstate(invalid="ignore", divide="ignore")
def log_sums(logits: Array, counts: Array, temperatures: Array) -> Array:
    """[R] float64, logsumexp of each row's `logits`, so many of each, at its temperature."""
    sums = np.full(len(counts), -np.inf)
    rows = np.flatnonzero(counts)
    if not rows.size:
        return sums
    starts = (counts.cumsum() - counts)[rows]
    scaled = (logits / np.repeat(temperatures, counts)).astype(np.float64)
    peaks = np.maximum.reduceat(scaled, starts)
    weights = np.exp(scaled - np.repeat(peaks, counts[rows]))
    found = peaks + np.log(np.add.reduceat(weights, starts))
    sums[rows] = np.where(np.isinf(peaks), peaks, found)
    return sums


@np.errstate(invalid="ignore", over="ignore")
def _held(found: Candidates, wants: RowWants) -> Array:
    """[R] how much of each row's first total its candidates have, as many as wanted; or 0."""
    temperatures = wants.temperatures[:, 0]
    has_total = temperatures > 0
    scales = np.where(has_total, temperatures, 1.0)
    known = log_sums(found.logits, wants.num_candidates.clip(0), scales)
    return np.where(has_total, np.exp(known - found.log_totals[:, 0]), 0.0)


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


def falling_keys(logits: Array, ids: Array) -> Array:
    """Numbers that rise as logits fall, and with ids among equals; what is no number comes last."""
    # Zeros of both signs are equal.
    bits = (np.where(np.isnan(logits), -np.inf, logits) + np.float32(0.0)).view(np.int32)
    ranks = bits ^ ((bits >> 31) & _ALL_BUT_SIGN)
    keys: Array = ~ranks.astype(np.int64) << 32 | ids
    return keys


def of_keys(keys: Array) -> tuple[Array, Array]:
    """The logits and ids that `keys` were made of; of `LAST_KEY`, -inf and -1."""
    ranks, ids = (~(keys >> 32)).astype(np.int32), keys.astype(np.int32)
    logits = (ranks ^ ((ranks >> 31) & _ALL_BUT_SIGN)).view(np.float32)
    return np.where(keys == LAST_KEY, np.float32(-np.inf), logits), ids
