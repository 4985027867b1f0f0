"""Draws tokens from candidates; the rows that they do not decide are left for full ones.

Shape legend: R rows.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from rufus_serve.kernels.candidate_draw import CandidateDraw, candidate_draw
from rufus_serve.leader.engine.draw import UNDECIDED, Filters, Ranked, choose
from rufus_serve.leader.engine.known_rows import KnownRows, RowReplies, known_rows, raw_rows
from rufus_serve.leader.engine.masks import Masks
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.leader.engine.token_edits import changed_logits

Array = np.ndarray
_WIDE = 512
"""Candidates that few rows have more of."""


class Logprobs(msgspec.Struct, frozen=True):
    """Of one row's token, as vLLM tells them."""

    ids: Array
    """[1 + n] the token, then the n best."""
    logprobs: Array
    """[1 + n] float32."""
    rank: int
    """How many tokens are as likely, itself included."""


class Drawn(msgspec.Struct, frozen=True):
    """A row's token, and its logprobs if asked for."""

    token_id: int
    logprobs: Logprobs | None = None


def draw(
    replies: RowReplies,
    sampling: Sequence[RequestSampling],
    uniforms: Array,
    masks: Masks | None = None,
) -> list[Drawn | None]:
    """Each row's token, by its number of `uniforms` [R]; None where the row in full must decide."""
    edited = replies
    if len(replies.named_ids):
        changed = changed_logits([each.edits for each in sampling], replies.named_logits)
        edited = msgspec.structs.replace(replies, named_logits=changed)
    kernel = candidate_draw()
    if kernel is None:
        token_ids = draw_by_numpy(edited, sampling, uniforms, masks)
    else:
        token_ids = _draw_by(kernel, edited, sampling, uniforms, masks)
    drawn = [Drawn(token) if token != UNDECIDED else None for token in token_ids.tolist()]
    told = [row for row, each in enumerate(sampling) if each.num_logprobs is not None]
    if told:
        for row, each in zip(told, _with_logprobs(replies, sampling, told, drawn), strict=True):
            drawn[row] = each
    return drawn


def _draw_by(
    kernel: CandidateDraw,
    replies: RowReplies,
    sampling: Sequence[RequestSampling],
    uniforms: Array,
    masks: Masks | None,
) -> Array:
    """Token ids [R], or UNDECIDED."""
    params = [each.draw_params for each in sampling]
    if masks is None:
        return kernel.tokens(replies, params, uniforms)
    return kernel.tokens(replies, params, uniforms, words=masks.words, places=masks.places)


def draw_by_numpy(
    replies: RowReplies,
    sampling: Sequence[RequestSampling],
    uniforms: Array,
    masks: Masks | None,
) -> Array:
    """Token ids [R], or UNDECIDED, where there are no kernels."""
    is_wide = replies.counts > _WIDE
    if is_wide.any() and not is_wide.all():
        # Apart: all rows of a batch are laid out as wide as the widest.
        token_ids = np.empty(len(sampling), np.int64)
        for part in (np.flatnonzero(~is_wide), np.flatnonzero(is_wide)):
            taken = None if masks is None else masks.take(part)
            requests = [sampling[row] for row in part.tolist()]
            token_ids[part] = draw_by_numpy(replies.take(part), requests, uniforms[part], taken)
        return token_ids
    known = known_rows(replies, sampling, masks)
    best = known.logits[:, 0]
    is_decided = (best != -np.inf) & ~(best < known.floors)
    token_ids = np.where(is_decided, known.ids[:, 0], UNDECIDED)
    random = np.flatnonzero([not each.is_greedy for each in sampling])
    if random.size:
        requests = [sampling[row] for row in random.tolist()]
        token_ids[random] = _choose(known.take(random), requests, uniforms[random])
    return token_ids


def _choose(known: KnownRows, sampling: Sequence[RequestSampling], uniforms: Array) -> Array:
    """Token ids [R] of random rows, or UNDECIDED."""
    temperatures = np.array([each.temperature for each in sampling], np.float32)
    logits = known.logits / temperatures[:, np.newaxis]
    floors = known.floors / temperatures
    filters = Filters.of([(each.top_k, each.top_p, each.min_p) for each in sampling])
    columns = choose(Ranked(logits, floors, known.log_totals), filters, uniforms)
    if (known.most_log_totals != known.log_totals).any():
        # What both bounds of the total decide alike is decided whatever it is.
        others = choose(Ranked(logits, floors, known.most_log_totals), filters, uniforms)
        columns = np.where(columns == others, columns, UNDECIDED)
    # No token stands behind the last known one either.
    return np.where(columns < 0, UNDECIDED, known.ids[np.arange(len(columns)), columns])


def _with_logprobs(
    replies: RowReplies,
    sampling: Sequence[RequestSampling],
    rows: Sequence[int],
    drawn: Sequence[Drawn | None],
) -> Iterator[Drawn | None]:
    """Some `rows` with their logprobs; None where these are not known."""
    raw = raw_rows(replies.take(np.array(rows)))
    for place, row in enumerate(rows):
        found, num_best = drawn[row], sampling[row].num_logprobs
        logits, ids = raw.logits[place], raw.ids[place]
        own = logits[ids == found.token_id] if found is not None else logits[:0]
        if found is None or not len(own) or own[0] <= raw.floors[place]:
            yield None
            continue
        told = np.concatenate((own[:1], logits[:num_best]))
        yield Drawn(
            found.token_id,
            Logprobs(
                ids=np.concatenate(([found.token_id], ids[:num_best])).astype(np.int32),
                logprobs=(told - raw.log_totals[place]).astype(np.float32),
                rank=int((logits >= own[0]).sum()),
            ),
        )
