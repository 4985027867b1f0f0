"""Draws a token from one row in full."""

import numpy as np

from rufus_serve.leader.engine.candidate_sampler import Drawn, Logprobs
from rufus_serve.leader.engine.draw import Filters, draw_from_row
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.runtime.candidates import best_ids, log_sum_exp

Array = np.ndarray


def draw_full_row(
    logits: Array, sampling: RequestSampling, uniform: float, bitmask: Array | None
) -> Drawn:
    """The token of `logits` [V], which are not changed, as `candidate_sampler.draw` draws it."""
    row = logits if bitmask is None else _allowed(logits, bitmask)
    changed = _changed(row, sampling)
    if sampling.is_greedy:
        token = int(changed.argmax())
    else:
        filters = Filters.of([(sampling.top_k, sampling.top_p, sampling.min_p)])
        numbers = np.array([uniform])
        token = draw_from_row(changed, filters, numbers, temperature=sampling.temperature)
    if sampling.num_logprobs is None:
        return Drawn(token)
    return Drawn(token, _logprobs(row, token, sampling.num_logprobs))


def _allowed(row: Array, bitmask: Array) -> Array:
    bits = np.unpackbits(bitmask.view(np.uint8), count=len(row), bitorder="little")
    return np.where(bits, row, np.float32(-np.inf))


def _changed(row: Array, sampling: RequestSampling) -> Array:
    """`row` as the request's parameters change it."""
    edits = sampling.edits
    token_ids = edits.token_ids
    if not len(token_ids):
        return row
    changed = np.full_like(row, -np.inf) if edits.only_these else row.copy()
    changed[token_ids] = edits.apply(row[token_ids])
    if changed.max() == -np.inf:
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
