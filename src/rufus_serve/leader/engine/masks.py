"""`Masks`: which tokens grammars allow."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

Array = np.ndarray


class Masks(msgspec.Struct, frozen=True):
    """Of rows of logits [R]; some may have none."""

    words: Array
    """[G, V / 32] int32, a bit for each token that is allowed."""
    places: Array
    """[R] int, each row's words; -1 for a row without a grammar."""

    def take(self, rows: Array) -> "Masks":
        """Of some `rows` [R'], in their order."""
        return Masks(self.words, self.places[rows])

    def row(self, row: int) -> Array | None:
        """The words [V / 32] of one row."""
        return None if self.places[row] < 0 else self.words[self.places[row]]


class GrammarMasks(msgspec.Struct, frozen=True):
    """Of requests."""

    words: Array
    """As in `Masks`."""
    places: Mapping[str, int]
    """Of each request with a grammar."""

    def of(self, req_ids: Sequence[str]) -> Masks:
        """Of rows of these requests."""
        return Masks(self.words, np.array([self.places.get(each, -1) for each in req_ids], int))
