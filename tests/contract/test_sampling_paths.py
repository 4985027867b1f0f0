"""Rows drawn from candidates get the tokens that vLLM's own sampler draws of the rows in full.

One shared sequence of random rows of every kind, with the same numbers to draw by.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rufus_serve.leader.engine.candidate_sampler import Drawn, draw
from rufus_serve.leader.engine.full_row import draw_full_row
from rufus_serve.leader.engine.known_rows import RowReplies
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.leader.engine.step_builder import row_wants
from rufus_serve.leader.spec import SPEC_VARIABLE
from rufus_serve.runtime.candidates import pick_shares

VOCAB = 4000
NUM_ROWS = 10_000
BATCH = 100
FILTERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0}, {}, {"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 20},
    {"top_k": 256}, {"top_p": 0.9}, {"top_p": 0.5, "temperature": 0.8}, {"min_p": 0.02},
    {"top_k": 64, "top_p": 0.95}, {"top_k": 100, "top_p": 0.9, "min_p": 0.01},
)  # fmt: skip
EDITS: tuple[dict[str, Any], ...] = (
    {}, {}, {},
    {"presence_penalty": 0.7}, {"frequency_penalty": 0.4},
    {"repetition_penalty": 1.3, "presence_penalty": -0.5},
    {"logit_bias": {3: 5.0, 17: -100.0, 90: 2.5}}, {"allowed_token_ids": list(range(5, 90, 7))},
    {"min_tokens": 30, "stop_token_ids": [1, 2, 3]},
)  # fmt: skip


@pytest.fixture(scope="module")
def vllm() -> Iterator[Any]:
    """vLLM as a leader process has it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VLLM_PLUGINS", "rufus_serve")
        patch.setenv(SPEC_VARIABLE, "unread")
        from rufus_serve.leader.engine import vllm_compat

        yield vllm_compat


def parameters(random: np.random.Generator, **more: Any) -> Any:
    from vllm import SamplingParams

    fields = FILTERS[random.integers(len(FILTERS))] | EDITS[random.integers(len(EDITS))] | more
    params = SamplingParams(max_tokens=64, seed=int(random.integers(1 << 40)), **fields)
    params.update_from_generation_config({}, None)
    if random.random() < 0.1:
        params._bad_words_token_ids = [[int(token)] for token in random.integers(0, 100, 5)]
    return params


def batches(vllm: Any) -> Iterator[tuple[Any, list[Any], np.ndarray]]:
    """vLLM's batch, its requests' states and their rows of logits, again and again."""
    from types import SimpleNamespace

    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.logits_processor.builtin import (
        LogitBiasLogitsProcessor,
        MinPLogitsProcessor,
        MinTokensLogitsProcessor,
    )
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=BATCH))
    kinds = (MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)
    random = np.random.default_rng(1)
    for _ in range(NUM_ROWS // BATCH):
        cpu = torch.device("cpu")
        batch = InputBatch(
            max_num_reqs=BATCH, max_model_len=64, max_num_batched_tokens=64, device=cpu,
            vocab_size=VOCAB, block_sizes=[16], max_num_blocks_per_req=[5],
            logitsprocs=LogitsProcessors(kind(config, cpu, False) for kind in kinds),
        )  # fmt: skip
        states = []
        for row in range(BATCH):
            logprobs = {"logprobs": int(random.integers(6))} if random.random() < 0.2 else {}
            state = CachedRequestState(
                req_id=str(row), prompt_token_ids=random.integers(0, 200, 20).tolist(),
                mm_features=[], sampling_params=parameters(random, **logprobs), generator=None,
                block_ids=([],), num_computed_tokens=0,
                output_token_ids=random.integers(0, 200, random.integers(30)).tolist(),
            )  # fmt: skip
            states.append(state)
            batch.add_request(state)
        batch.refresh_metadata()
        spread = random.choice([0.5, 2.0, 4.0], (BATCH, 1))
        logits = (random.standard_normal((BATCH, VOCAB)) * spread).astype(np.float32)
        logits[:, :200] += random.choice([0.0, 4.0], (BATCH, 1))
        yield batch, states, logits


def by_candidates(states: list[Any], logits: np.ndarray) -> tuple[list[Drawn | None], list[Any]]:
    sampling = [
        RequestSampling(
            state.sampling_params, state.prompt_token_ids, state.output_token_ids, vocab_size=VOCAB
        )
        for state in states
    ]
    wants = row_wants([each.want() for each in sampling])
    replies = RowReplies.of(pick_shares(logits.copy(), wants), wants)
    told = np.flatnonzero(wants.num_candidates >= 0)
    requests = [sampling[row] for row in told]
    uniforms = np.array([each.uniform() for each in requests])
    drawn: list[Drawn | None] = [None] * len(sampling)
    for row, found in zip(told, draw(replies.take(told), requests, uniforms), strict=True):
        drawn[row] = found
    return drawn, sampling


@pytest.mark.timeout(600)
def test_ten_thousand_rows_of_every_kind_get_vllms_tokens_and_logprobs(vllm: Any) -> None:
    from vllm.v1.sample.sampler import Sampler

    config = type("", (), {"model_config": type("", (), {"logprobs_mode": "raw_logprobs"})})
    sampler = vllm.make_sampler(config)
    assert isinstance(sampler, Sampler)
    num_decided = 0
    for batch, states, logits in batches(vllm):
        import torch

        drawn, sampling = by_candidates(states, logits)
        uniforms = np.array([each.uniform() for each in sampling])
        tokens, logprobs = vllm.sample_whole_rows(
            sampler, torch.from_numpy(logits.copy()), batch.sampling_metadata, uniforms
        )
        num_decided += sum(each is not None for each in drawn)
        for row, (found, each) in enumerate(zip(drawn, sampling, strict=True)):
            full = draw_full_row(logits[row], each, uniforms[row], None)
            for one in (full, found or full):
                assert one.token_id == tokens[row], states[row].sampling_params
                if one.logprobs is not None:
                    count = len(one.logprobs.ids)
                    assert one.logprobs.ids.tolist() == logprobs[0][row, :count].tolist()
                    np.testing.assert_allclose(
                        one.logprobs.logprobs, logprobs[1][row, :count], atol=2e-5, rtol=1e-5
                    )
                    assert one.logprobs.rank == logprobs[2][row]
    # Many rows are flatter than any model's.
    assert num_decided > NUM_ROWS * 3 // 4
