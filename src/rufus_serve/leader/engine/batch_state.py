"""The leader's record of every request: context, KV blocks and sampling state.

Follows the scheduler's outputs one by one, in order, on the step thread.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.column import Column
from rufus_serve.leader.engine.drafts import Drafter, Text
from rufus_serve.leader.engine.prompt_logprobs import PromptLogprobs
from rufus_serve.leader.engine.request_sampling import RequestSampling
from rufus_serve.leader.engine.step_builder import IN_FULL, Row, Want
from rufus_serve.protocol.messages import RuntimeInfo


class _Span(NamedTuple):
    """What a step computes of a request, drafts apart: tokens from `computed` up to `end`."""

    computed: int
    end: int


class BatchState:
    """Requests known to the engine, and the batch of those that are sampled this step.

    `batch` is vLLM's InputBatch, whose row order is the order of logits rows. A request whose
    prompt is still being prefilled is known, but not in the batch.
    """

    def __init__(
        self, vllm_config: Any, *, info: RuntimeInfo, drafter: Drafter | None = None
    ) -> None:
        self._info = info
        self.followers_choose = info.chosen_tokens > 0
        """As `RuntimeInfo.chosen_tokens`: there are no logits then."""
        self._always_whole = not info.candidates or vllm_compat.needs_whole_rows(vllm_config)
        self._sampling: dict[str, RequestSampling] = {}
        self.batch = vllm_compat.make_input_batch(
            vllm_config, vocab_size=info.vocab_size, block_size=info.block_size
        )
        self._requests: dict[str, Any] = {}
        self._blocks: dict[str, Column] = {}
        """KV blocks of each request, which its state has as lists."""
        self.prompt_logprobs = PromptLogprobs(vocab_size=info.vocab_size)
        self._drafter = drafter
        self.drafts: dict[str, list[int]] = {}
        """Tokens that requests of this step's batch are tried with behind their last one."""
        self.room: dict[str, int] = {}
        """Most tokens that requests of this step's batch may get behind their next one."""

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
        if self.followers_choose:
            return False
        return self._always_whole or any(each.needs_vllm for each in self.sampling)

    @property
    def num_drafts(self) -> dict[str, int]:
        """How many drafts each request is tried with; followers that make them fill the room."""
        if self.followers_choose:
            return {req_id: count for req_id, count in self.room.items() if count}
        return {req_id: len(drafts) for req_id, drafts in self.drafts.items()}

    @property
    def takes_best(self) -> bool:
        """Whether each row's next token is its best one, and nothing else is asked."""
        return not self.drafts and all(each.takes_best for each in self.sampling)

    def apply(self, output: Any) -> dict[str, Row]:
        """Take over a SchedulerOutput; the rows to run, in scheduling order."""
        fresh = self._register(output)
        self._advance(output.scheduled_cached_reqs)
        scheduled: dict[str, int] = output.num_scheduled_tokens
        spans = {req_id: self._span(req_id, count) for req_id, count in scheduled.items()}
        self._set_batch([r for r, at in spans.items() if at.end == self._requests[r].num_tokens])
        in_full = self.needs_vllm
        places = {} if in_full else output.scheduled_spec_decode_tokens
        self.room = {
            req_id: max(0, min(len(kept), self._num_left(req_id) - 1))
            for req_id, kept in places.items()
            if req_id not in fresh and req_id in self.batch.req_id_to_index
        }
        self.drafts = self._propose()
        return {
            req_id: self._row(
                req_id, span, is_new=req_id in fresh, in_full=in_full or self.followers_choose
            )
            for req_id, span in spans.items()
        }

    def look_ahead(self, output: Any) -> dict[str, Row] | None:
        """Take over the SchedulerOutput behind the one whose tokens are not drawn yet.

        Its rows, without those tokens, which show in them once appended; what they want is known
        then, see `wants`. None, and nothing is taken over, if it does more than to go on with every
        request of the batch by one token.
        """
        cached = output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        scheduled: dict[str, int] = output.num_scheduled_tokens
        if (
            not scheduled.keys() == computed.keys() == self.batch.req_id_to_index.keys()
            or any(count != 1 for count in scheduled.values())
            or any(self._requests[r].num_tokens != known for r, known in computed.items())
            or output.finished_req_ids
            or cached.resumed_req_ids
            or output.scheduled_spec_decode_tokens
            or self.room
            or self.followers_choose
            or self.needs_vllm
        ):
            return None
        self._advance(cached)
        return {
            req_id: self._row(
                req_id, _Span(computed[req_id], computed[req_id] + 1), is_new=False, in_full=False
            )
            for req_id in scheduled
        }

    def wants(self, req_ids: Iterable[str]) -> list[Want]:
        """What the next token of each request needs."""
        return [self._sampling[req_id].want() for req_id in req_ids]

    def observe(self, req_id: str, num_accepted: int) -> None:
        """So many of the request's drafts came true."""
        if self._drafter is not None and req_id in self.drafts:
            self._drafter.observe(req_id, len(self.drafts[req_id]), num_accepted)

    def append(self, req_ids: Sequence[str], token_ids: Sequence[int]) -> None:
        """Add a sampled token to the context of each of some requests; none is named twice."""
        batch, index_of = self.batch, self.batch.req_id_to_index
        rows = np.array([index_of[req_id] for req_id in req_ids], int)
        positions = batch.num_tokens_no_spec[rows]
        fits = positions < batch.max_model_len
        batch.token_ids_cpu[rows[fits], positions[fits]] = np.array(token_ids)[fits]
        batch.num_tokens_no_spec[rows] = positions + 1
        for req_id, token_id in zip(req_ids, token_ids, strict=True):
            self._requests[req_id].output_token_ids.append(token_id)

    def empty_batch(self) -> None:
        """Take all requests out of the batch; the scheduler will resume them."""
        self._set_batch(())

    def _register(self, output: Any) -> set[str]:
        """Forget finished requests and enter new ones; ids of new and resumed requests."""
        resumed: set[str] = set(output.scheduled_cached_reqs.resumed_req_ids)
        for req_id in output.finished_req_ids:
            self._requests.pop(req_id, None)
            self._blocks.pop(req_id, None)
            self._sampling.pop(req_id, None)
            self.batch.remove_request(req_id)
        self.prompt_logprobs.forget(output.finished_req_ids)
        if self._drafter is not None:
            self._drafter.forget(output.finished_req_ids)
        for req_id in resumed:
            self.batch.remove_request(req_id)
        for new in output.scheduled_new_reqs:
            state = self._requests[new.req_id] = vllm_compat.request_state(new)
            self._blocks[new.req_id] = Column(np.array(state.block_ids[0], np.int32))
            self._begin(new.req_id)
        return resumed | {new.req_id for new in output.scheduled_new_reqs}

    def _advance(self, cached: Any) -> None:
        for index, req_id in enumerate(cached.req_ids):
            state = self._requests[req_id]
            state.num_computed_tokens = cached.num_computed_tokens[index]
            new_block_ids = cached.new_block_ids[index]
            if req_id in cached.resumed_req_ids:
                state.block_ids = new_block_ids
                self._blocks[req_id] = Column(np.array(new_block_ids[0], np.int32))
                state.output_token_ids = cached.all_token_ids[req_id][state.num_prompt_tokens :]
                self._begin(req_id)
            elif new_block_ids is not None:
                for ids, added in zip(state.block_ids, new_block_ids, strict=True):
                    ids.extend(added)
                self._blocks[req_id].extend(len(new_block_ids[0]), new_block_ids[0])

    def _begin(self, req_id: str) -> None:
        """Keep what sampling and logprobs need of a request, from its tokens so far."""
        state = self._requests[req_id]
        self.prompt_logprobs.begin(
            req_id,
            state.sampling_params,
            num_prompt=state.num_prompt_tokens,
            num_output=len(state.output_token_ids),
        )
        self._sampling[req_id] = RequestSampling(
            state.sampling_params,
            state.prompt_token_ids,
            state.output_token_ids,
            vocab_size=self._info.vocab_size,
            device_candidates=self._info.device_candidates,
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

    def _span(self, req_id: str, count: int) -> _Span:
        """What `count` scheduled tokens are by now.

        With drafts the scheduler counts as if the ones of the step before had come true, and
        keeps room for more behind.
        """
        state = self._requests[req_id]
        known: int = state.num_tokens
        computed: int = state.num_computed_tokens
        return _Span(min(computed, known - 1), min(computed + count, known))

    def _propose(self) -> dict[str, list[int]]:
        """Drafts for requests of the batch, as there is room, written behind their tokens."""
        if self._drafter is None or not self.room:
            return {}
        texts = {
            req_id: Text(self._tokens(req_id), count)
            for req_id, count in self.room.items()
            if self._sampling[req_id].can_have_drafts
        }
        drafts = self._drafter.propose(texts, num_rows=self.batch.num_reqs)
        for req_id, token_ids in drafts.items():
            self._sampling[req_id].expect(token_ids)
            end = len(texts[req_id].tokens)
            row = self.batch.token_ids_cpu[self.batch.req_id_to_index[req_id]]
            row[end : end + len(token_ids)] = token_ids
        return drafts

    def _tokens(self, req_id: str) -> np.ndarray:
        """[L] prompt and outputs of a request of the batch."""
        index = self.batch.req_id_to_index[req_id]
        tokens: np.ndarray = self.batch.token_ids_cpu[index, : self.batch.num_tokens_no_spec[index]]
        return tokens

    def _num_left(self, req_id: str) -> int:
        """Tokens that a request may still make."""
        state = self._requests[req_id]
        return int(state.sampling_params.max_tokens - len(state.output_token_ids))

    def _row(self, req_id: str, span: _Span, *, is_new: bool, in_full: bool) -> Row:
        state = self._requests[req_id]
        index = self.batch.req_id_to_index.get(req_id)
        num_new = span.end - span.computed
        num_drafts = len(self.drafts.get(req_id, ()))
        is_in_full = in_full or index is None
        return Row(
            token_ids=_context(state) if index is None else self.batch.token_ids_cpu[index],
            num_computed=span.computed,
            num_new=num_new + num_drafts,
            block_ids=self._blocks[req_id].values,
            is_prefill=is_new or num_new > 1 or index is None,
            wants_logits=index is not None,
            want=IN_FULL if is_in_full else self._sampling[req_id].want(1 + num_drafts),
            prompt_want=self.prompt_logprobs.want(req_id),
        )


def _context(state: Any) -> np.ndarray:
    return np.array(state.prompt_token_ids + state.output_token_ids, dtype=np.int32)
