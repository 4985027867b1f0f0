"""`KnownRows`: what replies tell of rows, put in order; pure numpy, all rows at once.

Shape legend: R rows, K candidates of a row, E its named tokens, N known tokens of any row at most,
V vocabulary.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from rufus_serve.kernels.candidate_draw import KnownLogits
from rufus_serve.leader.engine.masks import Masks
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.protocol.messages import Candidates, RowWants
from rufus_serve.runtime.candidates import LAST_KEY, falling_keys, log_sums, of_keys

Array = np.ndarray
_UNSURE = 1e-6
_NONE = -1


class RowReplies(KnownLogits, frozen=True):
    """`Candidates` of rows, beside what was asked for; nothing of rows in full."""

    @classmethod
    def of(cls, candidates: Candidates, wants: RowWants) -> "RowReplies":
        """The rows that `wants` asked for."""
        return cls(
            wants.num_candidates.clip(0) if candidates.counts is None else candidates.counts,
            candidates.logits, candidates.ids, candidates.log_totals,
            wants.num_token_ids, wants.token_ids, candidates.token_logits,
        )  # fmt: skip

    @classmethod
    def of_nothing(cls, num_rows: int) -> "RowReplies":
        """Rows that all came in full."""
        none = np.zeros(num_rows, np.int32)
        logits, ids = np.empty(0, np.float32), np.empty(0, np.int32)
        return cls(none, logits, ids, np.zeros((num_rows, 2)), none, ids, logits)

    @classmethod
    def joined(cls, parts: Sequence["RowReplies"]) -> "RowReplies":
        """The rows of all parts, one part after another."""
        if len(parts) == 1:
            return parts[0]
        fields = cls.__struct_fields__
        return cls(*(np.concatenate([getattr(part, each) for part in parts]) for each in fields))

    def take(self, rows: Array) -> "RowReplies":
        """Some `rows` [R'], in their order."""
        if len(rows) == len(self.counts) and (rows == np.arange(len(rows))).all():
            return self
        here, named = _places(self.counts, rows), _places(self.num_named, rows)
        return RowReplies(
            self.counts[rows], self.logits[here], self.ids[here], self.log_totals[rows],
            self.num_named[rows], self.named_ids[named], self.named_logits[named],
        )  # fmt: skip

    def without_candidates(self, rows: Array) -> "RowReplies":
        """As if `rows` [R] bool had none."""
        kept = np.flatnonzero(~np.repeat(rows, self.counts))
        return msgspec.structs.replace(
            self, counts=np.where(rows, 0, self.counts), logits=self.logits[kept],
            ids=self.ids[kept],
        )  # fmt: skip

    def floors(self) -> Array:
        """[R] float32, each row's last candidate."""
        # Without candidates none was needed: the named tokens are all that may come.
        floors = np.full(len(self.counts), -np.inf, np.float32)
        has_some = self.counts > 0
        floors[has_some] = self.logits[self.counts.cumsum()[has_some] - 1]
        return floors


class KnownRows(msgspec.Struct, frozen=True):
    """Rows' tokens in falling order of their logits, down to `floors`; equals by their ids."""

    logits: Array
    """[R, N] float32; -inf behind the last one."""
    ids: Array
    """[R, N] int32; -1 behind the last one."""
    floors: Array
    """[R] float32; no token that is missing lies above."""
    log_totals: Array
    """[R] logsumexp at the request's temperature; at least that, with a grammar."""
    most_log_totals: Array
    """[R] at most that."""

    def take(self, rows: Array) -> "KnownRows":
        """Some `rows` [R'], in their order."""
        if len(rows) == len(self.floors):
            return self
        return KnownRows(*(getattr(self, each)[rows] for each in self.__struct_fields__))


def known_rows(
    replies: RowReplies, sampling: Sequence[RequestSampling], masks: Masks | None = None
) -> KnownRows:
    """What is known of rows as they are drawn from: cut by grammars.

    The named tokens' logits of `replies` are those that parameters changed.
    """
    temperatures = np.array([each.temperature for each in sampling], np.float32)
    totals, floors = replies.log_totals[:, 0], replies.floors()
    if not len(replies.named_ids):
        known = KnownRows(*_padded(replies), floors, totals, totals)
    else:
        changed = replies.named_logits
        row_of = _row_of(replies.num_named)
        only_these = np.array([each.edits.only_these for each in sampling])
        floors[only_these] = -np.inf
        of_named = log_sums(changed, replies.num_named, temperatures)
        totals = np.where(only_these, of_named, np.logaddexp(totals, of_named))
        told = np.flatnonzero(changed >= floors[row_of])
        if only_these.any():
            replies = replies.without_candidates(only_these)
        logits, ids = _merged(replies, changed, told)
        known = KnownRows(logits, ids, floors, totals, totals)
    if masks is None or (masks.places < 0).all():
        return known
    return _allowed(known, masks, temperatures, np.array([each.needs_total for each in sampling]))


def raw_rows(replies: RowReplies) -> KnownRows:
    """What is known of rows as the model gave them, at temperature 1."""
    totals, floors = replies.log_totals[:, 1], replies.floors()
    if not len(replies.named_ids):
        return KnownRows(*_padded(replies), floors, totals, totals)
    named = replies.named_logits
    of_named = log_sums(named, replies.num_named, np.ones(len(totals), np.float32))
    totals = np.logaddexp(totals, of_named)
    return KnownRows(*_merged(replies, named, np.arange(len(named))), floors, totals, totals)


def _padded(replies: RowReplies) -> tuple[Array, Array]:
    """Logits and ids [R, N] of candidates alone."""
    shape = len(replies.counts), int(replies.counts.max(initial=0)) + 1
    logits, ids = np.full(shape, -np.inf, np.float32), np.full(shape, _NONE, np.int32)
    places = _row_of(replies.counts) * shape[1] + _columns(replies.counts)
    logits.reshape(-1)[places], ids.reshape(-1)[places] = replies.logits, replies.ids
    return logits, ids


def _merged(replies: RowReplies, named_logits: Array, told: Array) -> tuple[Array, Array]:
    """Logits and ids [R, N] of candidates and of those named tokens that are `told`."""
    counts, row_of_told = replies.counts, _row_of(replies.num_named)[told]
    num_told = np.bincount(row_of_told, minlength=len(counts))
    width = int((counts + num_told).max(initial=0)) + 1
    keys = np.full((len(counts), width), LAST_KEY, np.int64)
    flat = keys.reshape(-1)
    flat[_row_of(counts) * width + _columns(counts)] = falling_keys(replies.logits, replies.ids)
    behind = row_of_told * width + counts[row_of_told] + _columns(num_told)
    flat[behind] = falling_keys(named_logits[told], replies.named_ids[told])
    keys.sort(axis=1)
    return of_keys(keys)


def _allowed(known: KnownRows, masks: Masks, temperatures: Array, needs_total: Array) -> KnownRows:
    """The tokens that grammars allow; the rows' totals are known within bounds."""
    has_mask = masks.places >= 0
    words = masks.words[masks.places[:, np.newaxis], known.ids >> 5]
    is_kept = ((words >> (known.ids & 31)) & 1 == 1) | ~has_mask[:, np.newaxis]
    is_kept &= known.ids >= 0
    kept, counts = np.flatnonzero(is_kept), is_kept.sum(axis=1)
    to = _row_of(counts) * is_kept.shape[1] + _columns(counts)
    logits, ids = np.full_like(known.logits, -np.inf), np.full_like(known.ids, _NONE)
    logits.reshape(-1)[to] = known.logits.reshape(-1)[kept]
    ids.reshape(-1)[to] = known.ids.reshape(-1)[kept]
    totals, most = known.log_totals.copy(), known.log_totals.copy()
    if (rows := np.flatnonzero(has_mask & needs_total)).size:
        scale = temperatures[rows, np.newaxis]
        least, of_known = _row_log_sums(logits[rows] / scale, known.logits[rows] / scale)
        share = np.exp(of_known - totals[rows])
        # Totals are sums of float32 exponentials; what they leave unsure is unknown as well.
        unknown = totals[rows] + np.log(np.maximum(0.0, 1.0 - share) + _UNSURE)
        totals[rows], most[rows] = least, np.logaddexp(least, unknown)
    return KnownRows(logits, ids, known.floors, totals, most)


@np.errstate(invalid="ignore", divide="ignore")
def _row_log_sums(*rows: Array) -> list[Array]:
    """[R] float64, logsumexp of each of `rows` [R, N]; their first columns are the largest."""
    found = []
    for each in rows:
        peaks = each[:, 0].astype(np.float64)
        sums = np.exp(each - peaks[:, np.newaxis]).sum(axis=1)
        found.append(np.where(np.isinf(peaks), peaks, peaks + np.log(sums)))
    return found


def _row_of(counts: Array) -> Array:
    """The row of each element of a flat array of rows of so many."""
    return np.repeat(np.arange(len(counts)), counts)


def _columns(counts: Array) -> Array:
    """The place in its row of each element of a flat array of rows of so many."""
    columns: Array = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return columns


def _places(counts: Array, rows: Array) -> Array:
    """Where the elements of `rows` lie in a flat array of rows of so many."""
    taken = counts[rows]
    shifts = (counts.cumsum() - counts)[rows] - (taken.cumsum() - taken)
    places: Array = np.repeat(shifts, taken) + np.arange(taken.sum())
    return places
