"""`DeviceLogits`: a step's candidates as its graphs found them, its logits where they left them.

Shape legend: R rows of the step, K candidates that a graph brings, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rufus_serve.protocol.messages import Array, Candidates, PromptScores, PromptWants, RowWants
from rufus_serve.runtime.candidates import (
    holds_share,
    joined,
    pick_shares,
    rows_of,
    wants_of_row,
)
from rufus_serve.runtime.logits import refuse_prompt_scores


@dataclass(frozen=True)
class Packed:
    """What the graph of one call found in its logits, and left there."""

    rows: tuple[int, ...]
    """Row of the step for each row of `found`."""
    found: Array
    """[rows, 2K + 2] float32: logits, ids, total, row of the logits left behind."""
    temperatures: Array
    """[rows] that the totals are at."""
    fetch: Callable[[], Array]
    """Brings the logits of all the call's tokens [B * S, V] to the host."""

    @property
    def num_candidates(self) -> int:
        """K."""
        return (int(self.found.shape[1]) - 2) // 2


def temperatures_of(wants: RowWants | None, num_rows: int) -> Array:
    """[R] the one temperature that each row's graph tells the total at; 0: none is wanted."""
    if wants is None:
        return np.zeros(num_rows, np.float32)
    for_draw, for_logprobs = wants.temperatures.T
    wanted: Array = np.where(for_draw > 0, for_draw, for_logprobs)
    return wanted


class DeviceLogits:
    """See `StepLogits`. On node rank 0; rows are fetched once they are asked for, and kept."""

    def __init__(self, answers: Sequence[Packed]) -> None:
        self._places = {
            row: (packed, place) for packed in answers for place, row in enumerate(packed.rows)
        }
        self._fetched: dict[int, Array] = {}

    def rows(self, rows: Array) -> Array:
        """See `StepLogits.rows`."""
        return np.stack([self._whole(row) for row in np.asarray(rows).tolist()])

    def candidates(self, wants: RowWants) -> Candidates:
        """See `StepLogits.candidates`.

        What the graph does not tell is found in the row in full: more than K candidates, named
        tokens, a total at a second temperature, more of the row's total.
        """
        shares = np.zeros(len(wants.num_candidates)) if wants.shares is None else wants.shares
        rows = [
            (row, wants_of_row(count, temperatures, named, share))
            for row, ((count, temperatures, named), share) in enumerate(
                zip(rows_of(wants), shares.tolist(), strict=True)
            )
        ]
        return joined([self._found(row, asked) for row, asked in rows], wants)

    def prompt_scores(self, wants: PromptWants) -> PromptScores:
        """See `StepLogits.prompt_scores`."""
        refuse_prompt_scores(wants)

    def _found(self, row: int, wants: RowWants) -> Candidates:
        """What `wants` asks of one row."""
        told = self._told(row, wants) if self._is_told(row, wants) else None
        if told is not None and holds_share(told, wants):
            return told
        return pick_shares(self._whole(row)[np.newaxis], wants)

    def _is_told(self, row: int, wants: RowWants) -> bool:
        packed, place = self._places[row]
        own = packed.temperatures[place]
        is_known = all(each in (0.0, own) for each in wants.temperatures[0].tolist())
        count = int(wants.num_candidates[0])
        return is_known and not len(wants.token_ids) and count <= packed.num_candidates

    def _told(self, row: int, wants: RowWants) -> Candidates:
        logits, ids, total = self._best(row)
        order = np.lexsort((ids, -logits))[: max(0, int(wants.num_candidates[0]))]
        return Candidates(
            logits=logits[order],
            ids=ids[order],
            log_totals=np.where(wants.temperatures > 0, total, 0.0).astype(np.float64),
            token_logits=np.empty(0, np.float32),
        )

    def _best(self, row: int) -> tuple[Array, Array, float]:
        """The K best of `row`, their ids and the row's total; equals in any order."""
        packed, place = self._places[row]
        found, count = packed.found[place], packed.num_candidates
        return found[:count], found[count : 2 * count].astype(np.int32), float(found[-2])

    def _whole(self, row: int) -> Array:
        packed, place = self._places[row]
        logits = self._fetched.get(id(packed))
        if logits is None:
            logits = self._fetched[id(packed)] = packed.fetch()
        whole: Array = logits[int(packed.found[place, -1])]
        return whole
