"""Requests and rows for the tests of sampling, without vLLM and without followers."""

from types import SimpleNamespace
from unittest import mock

import numpy as np

from rufus_serve.leader.engine import candidate_sampler
from rufus_serve.leader.engine.candidate_sampler import Drawn, draw
from rufus_serve.leader.engine.full_row import draw_full_row
from rufus_serve.leader.engine.known_rows import RowReplies
from rufus_serve.leader.engine.masks import Masks
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.leader.engine.step_builder import row_wants
from rufus_serve.runtime.candidates import pick

VOCAB = 2000


def parameters(**fields) -> SimpleNamespace:
    """As vLLM's `SamplingParams`."""
    usual = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "min_tokens": 0, "all_stop_token_ids": set(), "logit_bias": None,
        "allowed_token_ids": None, "bad_words_token_ids": None, "logprobs": None,
        "logprob_token_ids": None, "thinking_token_budget": None, "structured_outputs": None,
    }  # fmt: skip
    return SimpleNamespace(**(usual | fields))


def sampling(prompt=(), outputs=(), **fields) -> RequestSampling:
    return RequestSampling(parameters(**fields), list(prompt), list(outputs), vocab_size=VOCAB)


def logits(seed: int = 0, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * spread).astype(np.float32)


def bitmask_of(token_ids) -> np.ndarray:
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def by_candidates(
    row: np.ndarray, request: RequestSampling, uniform=0.5, mask=None
) -> Drawn | None:
    return batch_by_candidates(row[np.newaxis], [request], [uniform], [mask])[0]


def batch_by_candidates(rows, requests, uniforms, masks, order=None) -> list[Drawn | None]:
    """Each row's token, by the kernel, if there is one, and without; of rows in another `order`."""
    wants = row_wants([request.want() for request in requests])
    replies = RowReplies.of(pick(rows.copy(), wants), wants)
    words = [mask for mask in masks if mask is not None]
    places = np.array([-1 if mask is None else 0 for mask in masks])
    places[places == 0] = range(len(words))
    found = Masks(np.array(words, np.int32).reshape(len(words), -(-VOCAB // 32)), places)
    taken = np.arange(len(requests)) if order is None else np.array(order)
    requests = [requests[place] for place in taken]
    asked = replies.take(taken), requests, np.array(uniforms)[taken], found.take(taken)
    drawn = draw(*asked)
    with mock.patch.object(candidate_sampler, "candidate_draw", return_value=None):
        by_numpy = draw(*asked)
    assert [each and each.token_id for each in drawn] == [
        each and each.token_id for each in by_numpy
    ]
    return drawn


def in_full(
    row: np.ndarray, request: RequestSampling, uniform: float = 0.5, mask: np.ndarray | None = None
) -> Drawn:
    return draw_full_row(row, request, uniform, mask)
