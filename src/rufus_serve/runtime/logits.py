"""`StepLogits`: what a step left of logits, until the next steps begin."""

from typing import NoReturn, Protocol

import numpy as np

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array, Candidates, PromptScores, PromptWants, RowWants
from rufus_serve.runtime.candidates import pick_shares


class StepLogits(Protocol):
    """The logits of one step's rows, each follower's share of the vocabulary in its place.

    All followers of the group make the same calls in the same order, as they make steps.
    """

    def rows(self, rows: Array) -> Array | None:
        """[F, V] float32 of `rows` [F] on node rank 0, else None. Raises `CollectiveAborted`."""

    def candidates(self, wants: RowWants) -> Candidates | None:
        """What `wants` asks, on node rank 0, else None. Raises `CollectiveAborted`."""

    def prompt_scores(self, wants: PromptWants) -> PromptScores | None:
        """What `wants` asks, on node rank 0, else None.

        Raises:
            CollectiveAborted: as ever.
            RuntimeStepError: there are logits of last positions only.
        """


class WholeLogits:
    """Of a runtime that brings whole rows to node rank 0 by itself."""

    def __init__(self, logits: Array | None) -> None:
        self._logits = logits
        """[R, V] float32, None on other node ranks than 0."""

    def rows(self, rows: Array) -> Array | None:
        """See `StepLogits.rows`."""
        if self._logits is None:
            return None
        is_all = len(rows) == len(self._logits) and (rows == np.arange(len(rows))).all()
        return self._logits if is_all else self._logits[rows]

    def candidates(self, wants: RowWants) -> Candidates | None:
        """See `StepLogits.candidates`."""
        return None if self._logits is None else pick_shares(self._logits, wants)

    def prompt_scores(self, wants: PromptWants) -> PromptScores | None:
        """See `StepLogits.prompt_scores`."""
        refuse_prompt_scores(wants)


def refuse_prompt_scores(wants: PromptWants) -> NoReturn:
    """Raise RuntimeStepError: there are logits of last positions only."""
    raise RuntimeStepError(
        f"{len(wants.next_ids)} tokens of a prompt are to be scored, but this runtime has logits "
        "of last positions only"
    )
