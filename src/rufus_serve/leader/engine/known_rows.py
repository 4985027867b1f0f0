"""`KnownRow`: what a reply tells of one row, put in order; pure numpy.

Shape legend: K candidates, E named tokens, N known tokens (both together).
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.protocol.messages import Candidates, RowWants

Array = np.ndarray
_UNSURE = 1e-6


class RowReply(msgspec.Struct, frozen=True):
    """A row's part of `Candidates`."""

    logits: Array
    ids: Array
    log_totals: Array
    token_logits: Array


class KnownRow(msgspec.Struct, frozen=True):
    """A row's tokens in falling order of their logits, down to `floor`."""

    logits: Array
    """[N] float32"""
    ids: Array
    floor: float
    """No token that is missing lies above."""
    log_total: float
    """logsumexp of the row at the request's temperature; at least that, with a grammar."""
    most_log_total: float
    """At most that."""


def split(candidates: Candidates, wants: RowWants) -> Iterator[RowReply | None]:
    """The reply to each row; None for a row in full."""
    counts = wants.num_candidates.clip(0)
    stops, named_stops = counts.cumsum(), wants.num_token_ids.cumsum()
    rows = zip(
        wants.num_candidates.tolist(), counts.tolist(), stops.tolist(),
        wants.num_token_ids.tolist(), named_stops.tolist(), candidates.log_totals, strict=True,
    )  # fmt: skip
    for wanted, count, stop, num_named, named_stop, log_totals in rows:
        if wanted < 0:
            yield None
            continue
        here = slice(stop - count, stop)
        named = candidates.token_logits[named_stop - num_named : named_stop]
        yield RowReply(candidates.logits[here], candidates.ids[here], log_totals, named)


def known_row(reply: RowReply, sampling: RequestSampling, bitmask: Array | None) -> KnownRow:
    """What is known of a row as it is drawn from: changed by parameters, cut by a grammar.

    `bitmask` [V / 32] int32 has a bit for each token that the grammar allows.
    """
    edits, temperature = sampling.edits, sampling.temperature
    logits, ids, floor = reply.logits, reply.ids, _floor(reply)
    log_total = float(reply.log_totals[0])
    if len(reply.token_logits):
        changed = edits.apply(reply.token_logits)
        log_total = float(np.logaddexp(log_total, log_sum(changed, temperature)))
        if edits.only_these:
            logits, ids, floor = changed, edits.token_ids, -np.inf
            log_total = log_sum(changed, temperature)
        else:
            is_above = changed >= floor
            logits = np.concatenate((logits, changed[is_above]))
            ids = np.concatenate((ids, edits.token_ids[is_above]))
        logits, ids = in_order(logits, ids)
    row = KnownRow(logits, ids, floor, log_total, log_total)
    return row if bitmask is None else _allowed(row, bitmask, sampling)


def raw_row(reply: RowReply, sampling: RequestSampling) -> KnownRow:
    """What is known of a row as the model gave it, at temperature 1."""
    logits, ids, floor = reply.logits, reply.ids, _floor(reply)
    log_total = float(reply.log_totals[1])
    if len(reply.token_logits):
        log_total = float(np.logaddexp(log_total, log_sum(reply.token_logits, 1.0)))
        logits, ids = in_order(
            np.concatenate((logits, reply.token_logits)),
            np.concatenate((ids, sampling.edits.token_ids)),
        )
    return KnownRow(logits, ids, floor, log_total, log_total)


def in_order(logits: Array, ids: Array) -> tuple[Array, Array]:
    """Both in falling order of `logits`, equals by their ids."""
    order = np.lexsort((ids, -logits))
    return logits[order], ids[order]


def log_sum(logits: Array, temperature: float) -> float:
    """logsumexp of a few `logits` at a temperature."""
    scaled = (logits / np.float32(temperature)).astype(np.float64)
    peak = float(scaled.max(initial=-np.inf))
    return peak if math.isinf(peak) else peak + math.log(np.exp(scaled - peak).sum())


def _floor(reply: RowReply) -> float:
    # Without candidates none was needed: the named tokens are all that may come.
    return float(reply.logits[-1]) if len(reply.logits) else -np.inf


def _allowed(row: KnownRow, bitmask: Array, sampling: RequestSampling) -> KnownRow:
    """The tokens of `row` that a grammar allows; their total is known within bounds."""
    is_allowed = (bitmask[row.ids >> 5] >> (row.ids & 31)) & 1 == 1
    logits, ids = row.logits[is_allowed], row.ids[is_allowed]
    if not sampling.needs_total:
        return KnownRow(logits, ids, row.floor, row.log_total, row.log_total)
    least = log_sum(logits, sampling.temperature)
    known = np.exp(log_sum(row.logits, sampling.temperature) - row.log_total)
    # Totals are sums of float32 exponentials; what they leave unsure is unknown as well.
    unknown = row.log_total + float(np.log(max(0.0, 1.0 - known) + _UNSURE))
    return KnownRow(logits, ids, row.floor, least, float(np.logaddexp(least, unknown)))
