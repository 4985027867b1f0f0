"""The leader's record of every request: context, KV blocks and sampling state.

Follows the scheduler's outputs one by one, in order, on the step thread.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.leader.engine.step_builder import IN_FULL, Row
from rufus_serve.protocol.messages import RuntimeInfo


class BatchState:
    """Requests known to the engine, and the batch of those that are sampled this step.

    `batch` is vLLM's InputBatch, whose row order is the order of logits rows. A request whose
    prompt is still being prefilled is known, but not in the batch.
    """

    def __init__(self, vllm_config: Any, *, info: RuntimeInfo) -> None:
        self._vocab_size = info.vocab_size
        self._always_whole = not info.candidates or vllm_compat.needs_whole_rows(vllm_config)
        self._sampling: dict[str, RequestSampling] = {}
        self.batch = vllm_compat.make_input_batch(
            vllm_config, vocab_size=info.vocab_size, block_size=info.block_size
        )
        self._requests: dict[str, Any] = {}

    @property
    def req_ids(self) -> list[str]:
        """The batch, in row order."""
        return list(self.batch.req_ids)

    @property
    def sampling(self) -> list[RequestSampling]:
        """How each row of the batch is drawn."""
        return [self._sampling[req_id] for req_id in self.batch.req_ids]

    @property
    def needs_vllm(self) -> bool:
        """Whether the batch must be sampled by vLLM, from rows in full."""
        return self._always_whole or any(each.needs_vllm for each in self.sampling)

    def apply(self, output: Any) -> dict[str, Row]:
        """Take over a SchedulerOutput; the rows to run, in scheduling order."""
        fresh = self._register(output)
        self._advance(output.scheduled_cached_reqs)
        scheduled: dict[str, int] = output.num_scheduled_tokens
        ends = {
            req_id: self._requests[req_id].num_computed_tokens + count
            for req_id, count in scheduled.items()
        }
        complete = [r for r, end in ends.items() if end >= self._requests[r].num_tokens]
        self._set_batch(complete)
        in_full = self.needs_vllm
        return {
            req_id: self._row(req_id, count, is_new=req_id in fresh, in_full=in_full)
            for req_id, count in scheduled.items()
        }

    def append(self, req_ids: Sequence[str], token_ids: Sequence[int]) -> None:
        """Add each request's sampled token to its context."""
        for req_id, token_id in zip(req_ids, token_ids, strict=True):
            index = self.batch.req_id_to_index[req_id]
            position = self.batch.num_tokens_no_spec[index]
            if position < self.batch.max_model_len:
                self.batch.token_ids_cpu[index, position] = token_id
            self.batch.num_tokens_no_spec[index] = position + 1
            self._requests[req_id].output_token_ids.append(token_id)

    def empty_batch(self) -> None:
        """Take all requests out of the batch; the scheduler will resume them."""
        self._set_batch(())

    def _register(self, output: Any) -> set[str]:
        """Forget finished requests and enter new ones; ids of new and resumed requests."""
        resumed: set[str] = set(output.scheduled_cached_reqs.resumed_req_ids)
        for req_id in output.finished_req_ids:
            self._requests.pop(req_id, None)
            self._sampling.pop(req_id, None)
            self.batch.remove_request(req_id)
        for req_id in resumed:
            self.batch.remove_request(req_id)
        for new in output.scheduled_new_reqs:
            self._requests[new.req_id] = vllm_compat.request_state(new)
            self._begin_sampling(new.req_id)
        return resumed | {new.req_id for new in output.scheduled_new_reqs}

    def _advance(self, cached: Any) -> None:
        for index, req_id in enumerate(cached.req_ids):
            state = self._requests[req_id]
            state.num_computed_tokens = cached.num_computed_tokens[index]
            new_block_ids = cached.new_block_ids[index]
            if req_id in cached.resumed_req_ids:
                state.block_ids = new_block_ids
                state.output_token_ids = cached.all_token_ids[req_id][state.num_prompt_tokens :]
                self._begin_sampling(req_id)
            elif new_block_ids is not None:
                for ids, added in zip(state.block_ids, new_block_ids, strict=True):
                    ids.extend(added)

    def _begin_sampling(self, req_id: str) -> None:
        state = self._requests[req_id]
        self._sampling[req_id] = RequestSampling(
            state.sampling_params,
            state.prompt_token_ids,
            state.output_token_ids,
            vocab_size=self._vocab_size,
        )

    def _set_batch(self, req_ids: Iterable[str]) -> None:
        wanted = set(req_ids)
        for req_id in set(self.batch.req_id_to_index) - wanted:
            self.batch.remove_request(req_id)
        for req_id in req_ids:
            if req_id not in self.batch.req_id_to_index:
                self.batch.add_request(self._requests[req_id])
        self.batch.condense()
        self.batch.refresh_metadata()

    def _row(self, req_id: str, count: int, *, is_new: bool, in_full: bool) -> Row:
        state = self._requests[req_id]
        index = self.batch.req_id_to_index.get(req_id)
        return Row(
            token_ids=_context(state) if index is None else self.batch.token_ids_cpu[index],
            num_computed=state.num_computed_tokens,
            num_new=count,
            block_ids=state.block_ids[0],
            is_prefill=is_new or count > 1 or index is None,
            wants_logits=index is not None,
            want=IN_FULL if in_full or index is None else self._sampling[req_id].want(),
        )


def _context(state: Any) -> np.ndarray:
    return np.array(state.prompt_token_ids + state.output_token_ids, dtype=np.int32)
