"""The uniform numbers that rows draw their tokens by."""

import hashlib
from collections.abc import Sequence

import numpy as np

_BITS = 53
"""Of a float64's mantissa."""


def uniform(seed: int, position: int) -> float:
    """The number of [0, 1) for the `position`-th token of a request with `seed`.

    A function of both and nothing else, so a request that is computed again, or elsewhere,
    draws the same tokens.
    """
    digest = hashlib.blake2b(b"%d %d" % (seed, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> (64 - _BITS)) / (1 << _BITS))


class Dice:
    """Numbers for a batch. Make it in the engine process: forks of one parent must not share it."""

    def __init__(self) -> None:
        self._unseeded = np.random.default_rng()

    def roll(self, rows: Sequence[tuple[int | None, int]]) -> np.ndarray:
        """[R] float64, for each row's (seed, tokens drawn so far); any number without a seed."""
        numbers = self._unseeded.random(len(rows))
        for row, (seed, position) in enumerate(rows):
            if seed is not None:
                numbers[row] = uniform(seed, position)
        return numbers
