"""Draws a token from one row in full."""

import numpy as np

from rufus_serve.leader.engine.candidate_sampler import Drawn, Logprobs
from rufus_serve.leader.engine.draw import Filters, draw_from_whole
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.runtime.candidates import best_ids, log_sum_exp

Array = np.ndarray


def draw_full_row(
    logits: Array, sampling: RequestSampling, uniform: float, bitmask: Array | None
) -> Drawn:
    """The token of `logits` [V], which are not changed, as `candidate_sampler.draw` draws it."""
    row = logits.astype(np.float32)
    if bitmask is not None:
        bits = np.unpackbits(bitmask.view(np.uint8), count=len(row), bitorder="little")
        row[bits == 0] = -np.inf
    changed = _changed(row, sampling)
    if sampling.is_greedy:
        token = int(changed.argmax())
    else:
        changed /= np.float32(sampling.temperature)
        filters = Filters.of([(sampling.top_k, sampling.top_p, sampling.min_p)])
        token = int(draw_from_whole(changed[np.newaxis], filters, np.array([uniform]))[0])
    if sampling.num_logprobs is None:
        return Drawn(token)
    return Drawn(token, _logprobs(row, token, sampling.num_logprobs))


def _changed(row: Array, sampling: RequestSampling) -> Array:
    """`row` as the request's parameters change it."""
    edits = sampling.edits
    token_ids = edits.token_ids
    changed = np.full_like(row, -np.inf) if edits.only_these else row.copy()
    changed[token_ids] = edits.apply(row[token_ids])
    if not np.isfinite(changed).any():
        # As in vLLM: a grammar that allows nothing but the end outdoes min_tokens.
        changed[token_ids] = edits.apply(row[token_ids], stops_may_come=True)
    return changed


def _logprobs(row: Array, token: int, num_best: int) -> Logprobs:
    ids = np.concatenate(([token], best_ids(row, num_best)))
    return Logprobs(
        ids=ids.astype(np.int32),
        logprobs=(row[ids] - log_sum_exp(row, 1.0)).astype(np.float32),
        rank=int((row >= row[token]).sum()),
    )
