"""Turns the rows of one scheduler step into step requests for the followers.

Pure numpy: knows no vLLM, no sockets, no requests. Shape legend as in `protocol.messages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from rufus_serve.protocol.messages import (
    Array,
    Phase,
    PromptWants,
    RowWants,
    RuntimeInfo,
    StepRequest,
)


class Want(msgspec.Struct, frozen=True, eq=False):
    """What sampling needs of one row; as `RowWants`."""

    num_candidates: int
    temperatures: tuple[float, float] = (0.0, 0.0)
    token_ids: Array = msgspec.field(default_factory=lambda: np.empty(0, np.int32))
    share: float = 0.0


IN_FULL = Want(-1)


@dataclass(frozen=True)
class PromptWant:
    """How likely a prompt's tokens were is wanted, with so many of the best beside each."""

    num_tokens: int
    """Of the prompt; behind its last one there is nothing to tell."""
    num_best: int


class Row(msgspec.Struct, frozen=True):
    """One request's part in a scheduler step."""

    token_ids: Array
    """int32, the context; at least `end` entries."""
    num_computed: int
    num_new: int
    """In a decode more than 1 with drafts, which stand behind the context's last token."""
    block_ids: Sequence[int] | Array
    is_prefill: bool
    wants_logits: bool = True
    """False for a prefill that does not reach the end of its prompt yet."""
    want: Want = IN_FULL
    """Of each row of logits; a decode has as many as new tokens."""
    alone: bool = False
    """Whether it shares a decode step with no other row."""
    prompt_want: PromptWant | None = None
    """Its prefill shares a step with no other row then."""

    @property
    def end(self) -> int:
        """Context length once the step is done."""
        return self.num_computed + self.num_new


class LogitsOf(NamedTuple):
    """Whose a row of logits is."""

    row: int
    """Index into the rows given to `StepBuilder.build`."""
    offset: int = 0
    """How many new tokens of a decode stand before its token."""


@dataclass(frozen=True)
class PlannedStep:
    """A step request and where its logits belong."""

    request: StepRequest
    rows: tuple[LogitsOf, ...]
    """One per row of logits."""
    members: tuple[int, ...] = ()
    """Indexes into the rows given to `StepBuilder.build`, of all that the step computes."""


class _Part(NamedTuple):
    """New tokens of a row that one prefill step computes: context positions `start` to `stop`."""

    row: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class StepBuilder:
    """Cuts rows into steps that fit the compiled buckets.

    Decodes go first: a request admitted in this very step may share blocks that a running
    request completes in it, so the running ones must have written them. Prefills keep the
    scheduler's order for the same reason.
    """

    block_size: int
    largest_prefill: int
    """New tokens that one prefill step holds."""
    largest_decode_batch: int
    """New tokens that one decode step holds; no row has more."""
    batches_prefills: bool = False
    """Whether a prefill step may have several rows, as many as its tokens hold."""

    @classmethod
    def for_runtime(cls, info: RuntimeInfo) -> "StepBuilder":
        """The builder for followers that describe themselves by `info`."""
        return cls(
            block_size=info.block_size,
            largest_prefill=max(info.prefill_buckets),
            largest_decode_batch=max(info.decode_batch_buckets),
            batches_prefills=info.batched_prefill,
        )

    def build(self, rows: Sequence[Row], *, epoch: int, first_step_id: int) -> list[PlannedStep]:
        """Steps for `rows`, in the order in which followers must run them."""
        decodes = [index for index, row in enumerate(rows) if not row.is_prefill]
        shared = [index for index in decodes if not rows[index].alone]
        groups = self._decode_groups(rows, shared)
        groups += [[index] for index in decodes if rows[index].alone]
        planned = [self._decode(rows, group) for group in groups]
        planned += [self._prefill(rows, parts) for parts in self._prefill_parts(rows)]
        return [
            PlannedStep(
                msgspec.structs.replace(
                    step.request,
                    step_id=first_step_id + offset,
                    epoch=epoch,
                    wants=row_wants([rows[each.row].want for each in step.rows]),
                    keep_since=first_step_id,
                ),
                step.rows,
                step.members,
            )
            for offset, step in enumerate(planned)
        ]

    def _decode_groups(self, rows: Sequence[Row], shared: Sequence[int]) -> list[list[int]]:
        """`shared` rows in their order, as many to a step as it holds tokens of."""
        groups: list[list[int]] = []
        room = 0
        for index in shared:
            if rows[index].num_new > room:
                groups.append([])
                room = self.largest_decode_batch
            groups[-1].append(index)
            room -= rows[index].num_new
        return groups

    def _decode(self, rows: Sequence[Row], group: list[int]) -> PlannedStep:
        of = [LogitsOf(index, at) for index in group for at in range(rows[index].num_new)]
        chosen = [rows[each.row] for each in of]
        positions = np.array([rows[row].num_computed + at for row, at in of], dtype=np.int32)
        tables = block_table([row.block_ids for row in chosen], positions + 1, self.block_size)
        blocks = tables[np.arange(len(chosen)), positions // self.block_size]
        request = StepRequest(
            step_id=0,
            epoch=0,
            phase=Phase.DECODE,
            token_ids=np.array(
                [row.token_ids[at] for row, at in zip(chosen, positions, strict=True)],
                dtype=np.int32,
            ),
            num_computed_tokens=positions,
            context_lens=positions + 1,
            block_table=tables,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
        )
        return PlannedStep(request, tuple(of), tuple(group))

    def _prefill_parts(self, rows: Sequence[Row]) -> list[list[_Part]]:
        """What each prefill step computes, in the rows' order.

        Parts that want logits share a step if they may, as many as it holds tokens of.
        """
        steps: list[list[_Part]] = []
        room = 0
        for index, row in enumerate(rows):
            if not row.is_prefill:
                continue
            for start in range(row.num_computed, row.end, self.largest_prefill):
                part = _Part(index, start, min(start + self.largest_prefill, row.end))
                wants_logits = row.wants_logits and part.stop == row.end
                is_apart = row.alone or row.prompt_want is not None
                may_share = self.batches_prefills and wants_logits and not is_apart
                if not may_share or part.size > room:
                    steps.append([])
                    room = self.largest_prefill if may_share else 0
                steps[-1].append(part)
                room -= part.size
        return steps

    def _prefill(self, rows: Sequence[Row], parts: Sequence[_Part]) -> PlannedStep:
        chosen = [rows[part.row] for part in parts]
        stops = np.array([part.stop for part in parts], dtype=np.int32)
        tables = block_table([row.block_ids for row in chosen], stops, self.block_size)
        places = [
            slots(table, part.start, part.stop, self.block_size)
            for table, part in zip(tables, parts, strict=True)
        ]
        contexts = [row.token_ids[:stop] for row, stop in zip(chosen, stops, strict=True)]
        want_logits = chosen[-1].wants_logits and parts[-1].stop == chosen[-1].end
        request = StepRequest(
            step_id=0,
            epoch=0,
            phase=Phase.PREFILL,
            token_ids=np.concatenate(contexts, dtype=np.int32),
            num_computed_tokens=np.array([part.start for part in parts], dtype=np.int32),
            context_lens=stops,
            block_table=tables,
            slot_mapping=np.concatenate(places),
            want_logits=want_logits,
            prompt_wants=_prompt_wants(chosen[0], parts[0]),
        )
        members = tuple(part.row for part in parts)
        return PlannedStep(request, tuple(map(LogitsOf, members)) if want_logits else (), members)


def up_to_date(step: PlannedStep, rows: Sequence[Row], wants: Sequence[Want]) -> PlannedStep:
    """A decode step that was planned before its `rows` had their last tokens, with these.

    `wants`: of each row, by now.
    """
    token_ids = [rows[of.row].token_ids[rows[of.row].num_computed + of.offset] for of in step.rows]
    request = msgspec.structs.replace(
        step.request,
        token_ids=np.array(token_ids, np.int32),
        wants=row_wants([wants[of.row] for of in step.rows]),
    )
    return PlannedStep(request, step.rows, step.members)


def _prompt_wants(row: Row, part: _Part) -> PromptWants | None:
    """What is asked of the prompt's tokens in a step of this part alone."""
    want = row.prompt_want
    if want is None:
        return None
    next_ids = row.token_ids[part.start + 1 : min(part.stop + 1, want.num_tokens)]
    if not len(next_ids):
        return None
    return PromptWants(next_ids=next_ids.astype(np.int32), num_best=want.num_best)


def block_table(
    block_ids: Sequence[Sequence[int] | Array], context_lens: Array, block_size: int
) -> Array:
    """[R, W] the blocks that hold each row's context, padded with the null block 0."""
    used = -(-np.asarray(context_lens) // block_size)
    table = np.zeros((len(block_ids), int(used.max(initial=0))), dtype=np.int32)
    for row, ids, count in zip(table, block_ids, used.tolist(), strict=True):
        row[:count] = ids[:count]
    return table


def slots(blocks: Array, start: int, stop: int, block_size: int) -> Array:
    """[stop - start] cache slots of the context positions from `start` up to `stop`."""
    positions = np.arange(start, stop, dtype=np.int32)
    taken: Array = blocks[positions // block_size] * block_size + positions % block_size
    return taken.astype(np.int32)


def row_wants(wants: Sequence[Want]) -> RowWants | None:
    """`wants` of a step's rows as they are sent; None stands for all rows in full."""
    return _row_wants(tuple(wants))


# Most batches want the same from one step to the next.
@lru_cache(maxsize=4)
def _row_wants(wants: tuple[Want, ...]) -> RowWants | None:
    if all(want.num_candidates < 0 for want in wants):
        return None
    return RowWants(
        num_candidates=np.array([want.num_candidates for want in wants], np.int32),
        temperatures=np.array([want.temperatures for want in wants], np.float32),
        num_token_ids=np.array([len(want.token_ids) for want in wants], np.int32),
        token_ids=np.concatenate([want.token_ids for want in wants]).astype(np.int32),
        shares=(
            np.array([want.share for want in wants], np.float32)
            if any(want.share for want in wants)
            else None
        ),
    )
