"""From followers' replies to sampled tokens: by candidates, by rows in full, or by vLLM."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.candidate_sampler import Drawn, Task, draw
from rufus_serve.leader.engine.dice import Dice
from rufus_serve.leader.engine.full_row import draw_full_row
from rufus_serve.leader.engine.group_steps import Answer
from rufus_serve.leader.engine.known_rows import RowReply, split
from rufus_serve.runtime.candidates import whole_rows

Array = np.ndarray
LookUp = Callable[[Sequence[Answer], Collection[int]], dict[int, Array] | None]
"""As `GroupSteps.look_up`."""


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
        self._answers: Sequence[Answer] = ()
        self._req_ids: Sequence[str] = ()

    def collect(self, answers: Sequence[Answer], req_ids: Sequence[str]) -> None:
        """Take a step's replies; `req_ids` are the planned rows' owners."""
        self._answers, self._req_ids = answers, req_ids

    def sample(self, scheduler_output: Any, grammar_output: Any, look_up: LookUp) -> Any:
        """A ModelRunnerOutput for the batch whose replies were collected last.

        None if rows had to be asked for in full, and the group is lost.
        """
        req_ids = self._state.req_ids
        uniforms = self._dice.roll([each.seed for each in self._state.sampling])
        token_ids: list[int] = []
        logprobs = None
        if not req_ids:
            pass
        elif self._state.needs_vllm:
            token_ids, logprobs = self._by_vllm(scheduler_output, grammar_output, uniforms)
        else:
            drawn = self._by_rows(vllm_compat.bitmasks(grammar_output), uniforms, look_up)
            if drawn is None:
                return None
            token_ids = [each.token_id for each in drawn]
            logprobs = vllm_compat.logprobs_lists([each.logprobs for each in drawn])
        self._state.append(req_ids, token_ids)
        return vllm_compat.runner_output(
            req_ids, token_ids, logprobs, still_prefilling=_rest(scheduler_output, req_ids)
        )

    def _by_vllm(
        self, scheduler_output: Any, grammar_output: Any, uniforms: Array
    ) -> tuple[list[int], Any]:
        batch = self._state.batch
        logits = self._logits[: batch.num_reqs]
        rows = logits.numpy()
        for index, _, full_row in self._replies():
            rows[index] = full_row
        if grammar_output is not None:
            vllm_compat.apply_grammar(scheduler_output, grammar_output, batch, logits)
        return vllm_compat.sample_whole_rows(
            self._sampler, logits, batch.sampling_metadata, uniforms
        )

    def _by_rows(
        self, bitmasks: Mapping[str, Array], uniforms: Array, look_up: LookUp
    ) -> list[Drawn] | None:
        """Each row's token in batch order; None if the group is lost."""
        sampling, req_ids = self._state.sampling, self._state.req_ids
        masks = [bitmasks.get(req_id) for req_id in req_ids]
        full: dict[int, Array] = {}
        tasks: dict[int, Task] = {}
        for index, reply, full_row in self._replies():
            if full_row is not None:
                full[index] = full_row
            elif reply is not None:
                tasks[index] = Task(sampling[index], reply, uniforms[index], masks[index])
        drawn = dict(zip(tasks, draw(list(tasks.values())), strict=True))
        undecided = {req_ids[index] for index, found in drawn.items() if found is None}
        if undecided:
            planned = {row for row, owner in enumerate(self._req_ids) if owner in undecided}
            found = look_up(self._answers, planned)
            if found is None:
                return None
            index_of = self._state.batch.req_id_to_index
            full |= {index_of[self._req_ids[row]]: logits for row, logits in found.items()}
        for index, logits in full.items():
            drawn[index] = draw_full_row(logits, sampling[index], uniforms[index], masks[index])
        return [drawn[index] for index in range(len(req_ids))]  # type: ignore[misc]

    def _replies(self) -> Iterator[tuple[int, RowReply | None, Array | None]]:
        """For each answered row its place in the batch, and candidates or logits [V]."""
        index_of: Mapping[str, int] = self._state.batch.req_id_to_index
        for step, reply in self._answers:
            wants = step.request.wants
            parts: Sequence[RowReply | None] = [None] * len(step.rows)
            if wants is not None and reply.candidates is not None:
                parts = list(split(reply.candidates, wants))
            places = whole_rows(wants, len(step.rows)).tolist()
            full = {} if reply.logits is None else dict(zip(places, reply.logits, strict=True))
            for place, (row, part) in enumerate(zip(step.rows, parts, strict=True)):
                yield index_of[self._req_ids[row]], part, full.get(place)


def _rest(scheduler_output: Any, req_ids: Sequence[str]) -> list[str]:
    sampled = set(req_ids)
    return [req_id for req_id in scheduler_output.num_scheduled_tokens if req_id not in sampled]
