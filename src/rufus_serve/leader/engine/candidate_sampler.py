"""Draws tokens from candidates; the rows that they do not decide are left for full ones.

Shape legend: R rows, N known tokens.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from rufus_serve.leader.engine.draw import UNDECIDED, Filters, Ranked, choose
from rufus_serve.leader.engine.known_rows import KnownRow, RowReply, known_row, raw_row
from rufus_serve.leader.engine.request_sampling import RequestSampling

Array = np.ndarray


class Logprobs(msgspec.Struct, frozen=True):
    """Of one row's token, as vLLM tells them."""

    ids: Array
    """[1 + n] the token, then the n best."""
    logprobs: Array
    """[1 + n] float32."""
    rank: int
    """How many tokens are as likely, itself included."""


class Task(msgspec.Struct, frozen=True):
    """One row to draw."""

    sampling: RequestSampling
    reply: RowReply
    uniform: float
    bitmask: Array | None = None


class Drawn(msgspec.Struct, frozen=True):
    """A row's token, and its logprobs if asked for."""

    token_id: int
    logprobs: Logprobs | None = None


def draw(tasks: Sequence[Task]) -> list[Drawn | None]:
    """Each row's token; None where the row in full must decide."""
    known = [known_row(task.reply, task.sampling, task.bitmask) for task in tasks]
    tokens = [
        _best(row) if task.sampling.is_greedy else UNDECIDED
        for task, row in zip(tasks, known, strict=True)
    ]
    random = [place for place, task in enumerate(tasks) if not task.sampling.is_greedy]
    if random:
        chosen = _choose([tasks[place] for place in random], [known[place] for place in random])
        for place, token in zip(random, chosen, strict=True):
            tokens[place] = token
    return [_told(task, token) for task, token in zip(tasks, tokens, strict=True)]


def _best(row: KnownRow) -> int:
    if not len(row.logits) or row.logits[0] == -np.inf or row.logits[0] < row.floor:
        return UNDECIDED
    return int(row.ids[0])


def _choose(tasks: Sequence[Task], known: Sequence[KnownRow]) -> list[int]:
    """Token ids of random rows, or UNDECIDED."""
    temperatures = np.array([task.sampling.temperature for task in tasks], np.float32)
    logits = np.full((len(known), max(len(row.logits) for row in known) + 1), -np.inf, np.float32)
    for padded, row in zip(logits, known, strict=True):
        padded[: len(row.logits)] = row.logits
    logits /= temperatures[:, np.newaxis]
    floor = np.array([row.floor for row in known], np.float32) / temperatures
    filters = Filters.of(
        [(task.sampling.top_k, task.sampling.top_p, task.sampling.min_p) for task in tasks]
    )
    uniforms = np.array([task.uniform for task in tasks])
    least = np.array([row.log_total for row in known])
    columns = choose(Ranked(logits, floor, least), filters, uniforms)
    most = np.array([row.most_log_total for row in known])
    if (most != least).any():
        # What both bounds of the total decide alike is decided whatever it is.
        others = choose(Ranked(logits, floor, most), filters, uniforms)
        columns = np.where(columns == others, columns, UNDECIDED)
    return [
        int(row.ids[column]) if 0 <= column < len(row.ids) else UNDECIDED
        for row, column in zip(known, columns.tolist(), strict=True)
    ]


def _told(task: Task, token: int) -> Drawn | None:
    if token == UNDECIDED:
        return None
    if task.sampling.num_logprobs is None:
        return Drawn(token)
    row = raw_row(task.reply, task.sampling)
    own = row.logits[row.ids == token]
    if not len(own) or own[0] <= row.floor:
        return None
    best = slice(0, task.sampling.num_logprobs)
    logits = np.concatenate((own[:1], row.logits[best]))
    return Drawn(
        token,
        Logprobs(
            ids=np.concatenate(([token], row.ids[best])).astype(np.int32),
            logprobs=(logits - row.log_total).astype(np.float32),
            rank=int((row.logits >= own[0]).sum()),
        ),
    )
