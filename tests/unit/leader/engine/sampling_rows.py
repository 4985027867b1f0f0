"""Requests and rows for the tests of sampling, without vLLM and without followers."""

from types import SimpleNamespace

import numpy as np

from rufus_serve.leader.engine.candidate_sampler import Drawn, Task, draw
from rufus_serve.leader.engine.full_row import draw_full_row
from rufus_serve.leader.engine.known_rows import split
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
    wants = row_wants([request.want()])
    (reply,) = split(pick(row[np.newaxis].copy(), wants), wants)
    return draw([Task(request, reply, uniform, mask)])[0]


def in_full(
    row: np.ndarray, request: RequestSampling, uniform: float = 0.5, mask: np.ndarray | None = None
) -> Drawn:
    return draw_full_row(row, request, uniform, mask)
