"""From followers' logits to sampled tokens: grammar mask, then vLLM's own sampler."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.dice import Dice
from rufus_serve.leader.engine.group_steps import Answer


class TokenSampler:
    """Samples one token for each row of the batch; step thread only.

    `_logits` [max rows, V] is owned here and overwritten each step: received arrays are
    read-only, and vLLM's sampler works in place.
    """

    def __init__(self, vllm_config: Any, state: BatchState, *, vocab_size: int) -> None:
        self._state = state
        self._sampler = vllm_compat.make_sampler(vllm_config)
        self._dice = Dice()
        rows = vllm_config.scheduler_config.max_num_seqs
        self._logits = torch.empty((rows, vocab_size), dtype=torch.float32)

    @property
    def num_candidates(self) -> int:
        """How many candidates the batch needs of each row; 0 asks for all logits."""
        return 0

    def collect(self, answers: Sequence[Answer], req_ids: Sequence[str]) -> None:
        """Lay the replies' logits out in batch order; `req_ids` are the planned rows' owners."""
        index_of: Mapping[str, int] = self._state.batch.req_id_to_index
        logits = self._logits.numpy()
        for step, reply in answers:
            if step.rows and reply.logits is not None:
                logits[[index_of[req_ids[row]] for row in step.rows]] = reply.logits

    def sample(self, scheduler_output: Any, grammar_output: Any) -> Any:
        """A ModelRunnerOutput for the batch whose logits were collected last."""
        batch = self._state.batch
        logits = self._logits[: batch.num_reqs]
        if grammar_output is not None:
            vllm_compat.apply_grammar(scheduler_output, grammar_output, batch, logits)
        req_ids = self._state.req_ids
        output = None
        if req_ids:
            output = vllm_compat.sample_whole_rows(
                self._sampler,
                logits,
                batch.sampling_metadata,
                self._dice.roll(self._state.seeds()),
            )
        token_ids = [] if output is None else output.sampled_token_ids[:, 0].tolist()
        self._state.append(req_ids, token_ids)
        logprobs = None if output is None else output.logprobs_tensors
        return vllm_compat.runner_output(
            req_ids, token_ids, logprobs, still_prefilling=_rest(scheduler_output, req_ids)
        )


def _rest(scheduler_output: Any, req_ids: Sequence[str]) -> list[str]:
    sampled = set(req_ids)
    return [req_id for req_id in scheduler_output.num_scheduled_tokens if req_id not in sampled]
