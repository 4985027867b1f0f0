"""From followers' replies to tokens: by candidates, by rows in full, by vLLM, or as they chose.

Drafts are verified by drawing: each position's token is drawn as ever, from the logits behind the
tokens before it, for as long as those are what the drafts said. So drafts change no token.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.candidate_sampler import Drawn, draw
from rufus_serve.leader.engine.full_row import draw_full_row
from rufus_serve.leader.engine.group_steps import PlannedReply
from rufus_serve.leader.engine.known_rows import RowReplies
from rufus_serve.leader.engine.masks import GrammarMasks
from rufus_serve.leader.engine.step_builder import LogitsOf
from rufus_serve.runtime.candidates import whole_rows

Array = np.ndarray
LookUp = Callable[[Sequence[PlannedReply], Collection[LogitsOf]], dict[LogitsOf, Array] | None]
"""As `GroupSteps.look_up`."""


@dataclass(frozen=True)
class _Replies:
    """What came of rows of logits, by whose they are in the batch."""

    rows: RowReplies
    place_of: Mapping[LogitsOf, int]
    """Of each row of logits in `rows`."""
    full: Mapping[LogitsOf, Array]
    """[V] of those that came in full."""


@dataclass(frozen=True)
class Sampled:
    """A batch's tokens."""

    req_ids: Sequence[str]
    rest: Sequence[str]
    """Requests of the step whose prompts are not finished."""
    token_ids: list[list[int]]
    logprobs: Any = None
    """As vLLM's own sampler tells them."""
    rows: Sequence[Sequence[Drawn]] = ()
    """What was drawn otherwise, of each request."""


class TokenSampler:
    """Samples the tokens of the batch's rows; step thread only.

    `_logits` [max rows, V] is owned here and overwritten each step: received arrays are
    read-only, and vLLM's sampler works in place.
    """

    def __init__(self, vllm_config: Any, state: BatchState, *, vocab_size: int) -> None:
        self._state = state
        self._vllm_config = vllm_config
        self._sampler = vllm_compat.make_sampler(vllm_config)
        rows = vllm_config.scheduler_config.max_num_seqs
        self._logits = torch.empty((rows, vocab_size), dtype=torch.float32)
        self._answers: Sequence[PlannedReply] = ()
        self._req_ids: Sequence[str] = ()

    def collect(self, answers: Sequence[PlannedReply], req_ids: Sequence[str]) -> None:
        """Take a step's replies; `req_ids` are the planned rows' owners."""
        self._answers, self._req_ids = answers, req_ids
        self._state.prompt_logprobs.collect(answers, req_ids)

    def draw(self, scheduler_output: Any, grammar_output: Any, look_up: LookUp) -> Sampled | None:
        """The tokens of the batch whose replies were collected last; its contexts have them then.

        None if rows had to be asked for in full, and the group is lost.
        """
        state = self._state
        req_ids = state.req_ids
        rest = _rest(scheduler_output, req_ids)
        if not req_ids:
            return Sampled([], rest, [])
        if state.followers_choose:
            return Sampled(req_ids, rest, self._by_followers())
        if state.needs_vllm:
            drawn, logprobs = self._by_vllm(scheduler_output, grammar_output)
            return Sampled(req_ids, rest, [[token_id] for token_id in drawn], logprobs)
        if (best := self._best_tokens()) is not None:
            return Sampled(req_ids, rest, [[token_id] for token_id in best])
        rows = self._by_rows(vllm_compat.grammar_masks(grammar_output), look_up)
        if rows is None:
            return None
        token_ids = [[each.token_id for each in row] for row in rows]
        return Sampled(req_ids, rest, token_ids, rows=rows)

    def output(self, sampled: Sampled) -> Any:
        """A ModelRunnerOutput of what was drawn last."""
        logprobs = sampled.logprobs
        if sampled.rows:
            logprobs = vllm_compat.logprobs_lists(
                [[each.logprobs for each in row] for row in sampled.rows]
            )
        prompt_logprobs = self._state.prompt_logprobs.pop(sampled.req_ids)
        return vllm_compat.runner_output(
            sampled.req_ids,
            sampled.token_ids,
            logprobs,
            still_prefilling=sampled.rest,
            num_drafts=self._state.num_drafts,
            prompt_logprobs={
                req_id: vllm_compat.prompt_logprobs(scores, self._vllm_config)
                for req_id, scores in prompt_logprobs.items()
            },
        )

    def _by_vllm(self, scheduler_output: Any, grammar_output: Any) -> tuple[list[int], Any]:
        batch = self._state.batch
        logits = self._logits[: batch.num_reqs]
        rows = logits.numpy()
        for of, row in self._replies().full.items():
            rows[of.row] = row
        if grammar_output is not None:
            vllm_compat.apply_grammar(scheduler_output, grammar_output, batch, logits)
        uniforms = np.array([each.uniform() for each in self._state.sampling])
        token_ids, logprobs = vllm_compat.sample_whole_rows(
            self._sampler, logits, batch.sampling_metadata, uniforms
        )
        self._state.append(self._state.req_ids, token_ids)
        return token_ids, logprobs

    def _by_followers(self) -> list[list[int]]:
        """The tokens that followers chose, as many of each row as it has room for."""
        state, req_ids = self._state, self._state.req_ids
        chosen = {
            self._req_ids[of.row]: token_ids[:count].tolist()
            for step, reply in self._answers
            if reply.chosen is not None
            for of, token_ids, count in zip(
                step.rows, reply.chosen.token_ids, reply.chosen.num_accepted, strict=True
            )
        }
        rows = [chosen[req_id][: 1 + state.room.get(req_id, 0)] for req_id in req_ids]
        for req_id, token_ids in zip(req_ids, rows, strict=True):
            for token_id in token_ids:
                state.append([req_id], [token_id])
        return rows

    def _best_tokens(self) -> list[int] | None:
        """The batch's tokens where each is its row's best one; None if a row may need more."""
        state = self._state
        if not state.takes_best:
            return None
        index_of: Mapping[str, int] = state.batch.req_id_to_index
        token_ids = [0] * len(index_of)
        for step, reply in self._answers:
            found = reply.candidates
            if not step.rows:
                continue
            if found is None or found.logits.min() == -np.inf:
                return None
            for of, token_id in zip(step.rows, found.ids.tolist(), strict=True):
                token_ids[index_of[self._req_ids[of.row]]] = token_id
        state.append(state.req_ids, token_ids)
        return token_ids

    def _by_rows(self, masks: GrammarMasks, look_up: LookUp) -> list[list[Drawn]] | None:
        """Each row's tokens in batch order; None if the group is lost."""
        state, req_ids = self._state, self._state.req_ids
        replies = self._replies()
        rows: list[list[Drawn]] = [[] for _ in req_ids]
        going = list(range(len(req_ids)))
        while going:
            offset = len(rows[going[0]])
            drawn = self._draw([LogitsOf(row, offset) for row in going], replies, masks, look_up)
            if drawn is None:
                return None
            state.append([req_ids[row] for row in going], [each.token_id for each in drawn])
            for row, each in zip(going, drawn, strict=True):
                rows[row].append(each)
            going = [
                row
                for row, each in zip(going, drawn, strict=True)
                if state.drafts.get(req_ids[row], [])[offset : offset + 1] == [each.token_id]
            ]
        for req_id, tokens in zip(req_ids, rows, strict=True):
            state.observe(req_id, len(tokens) - 1)
        return rows

    def _draw(
        self, wanted: Sequence[LogitsOf], replies: _Replies, masks: GrammarMasks, look_up: LookUp
    ) -> list[Drawn] | None:
        """A token for each of the `wanted` rows of logits; None if the group is lost."""
        sampling, req_ids = self._state.sampling, self._state.req_ids
        requests = [sampling[each.row] for each in wanted]
        uniforms = np.array([each.uniform() for each in requests])
        allowed = masks.of([req_ids[each.row] for each in wanted])
        full = {at: replies.full[each] for at, each in enumerate(wanted) if each in replies.full}
        told = [at for at in range(len(wanted)) if at not in full]
        drawn: list[Drawn | None] = [None] * len(wanted)
        if told:
            rows = np.array(told)
            answers = replies.rows.take(np.array([replies.place_of[wanted[at]] for at in told]))
            found = draw(answers, [requests[at] for at in told], uniforms[rows], allowed.take(rows))
            for at, each in zip(told, found, strict=True):
                drawn[at] = each
        undecided = {self._planned(wanted[at]): at for at in told if drawn[at] is None}
        if undecided:
            asked = look_up(self._answers, undecided)
            if asked is None:
                return None
            full |= {undecided[planned]: logits for planned, logits in asked.items()}
        for at, logits in full.items():
            drawn[at] = draw_full_row(logits, requests[at], uniforms[at], allowed.row(at))
        return drawn  # type: ignore[return-value]

    def _planned(self, of: LogitsOf) -> LogitsOf:
        """From a row of the batch to the one that was planned."""
        return LogitsOf(self._req_ids.index(self._state.req_ids[of.row]), of.offset)

    def _replies(self) -> _Replies:
        """What was answered, by rows of the batch."""
        index_of: Mapping[str, int] = self._state.batch.req_id_to_index
        parts: list[RowReplies] = []
        of_rows: list[LogitsOf] = []
        full: dict[LogitsOf, Array] = {}
        for step, reply in self._answers:
            here = [LogitsOf(index_of[self._req_ids[of.row]], of.offset) for of in step.rows]
            wants = step.request.wants
            if wants is None or reply.candidates is None:
                parts.append(RowReplies.of_nothing(len(here)))
            else:
                parts.append(RowReplies.of(reply.candidates, wants))
            if reply.logits is not None:
                places = whole_rows(wants, len(here)).tolist()
                full |= dict(zip([here[place] for place in places], reply.logits, strict=True))
            of_rows += here
        places_of = {of: place for place, of in enumerate(of_rows)}
        return _Replies(RowReplies.joined(parts), places_of, full)


def _rest(scheduler_output: Any, req_ids: Sequence[str]) -> list[str]:
    sampled = set(req_ids)
    return [req_id for req_id in scheduler_output.num_scheduled_tokens if req_id not in sampled]
