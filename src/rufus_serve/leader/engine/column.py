"""`Column`: an array that grows."""

import numpy as np


class Column:
    """Grows in place most times. Views of `values` keep their length, and share memory with it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = self._room = values

    def extend(self, count: int, values: object = 0) -> None:
        """Add so many elements: `values`, or as many times the same."""
        size = len(self.values)
        if size + count > len(self._room):
            room = np.empty(2 * (size + count), self.values.dtype)
            room[:size] = self.values
            self._room = room
        self.values = self._room[: size + count]
        self.values[size:] = values
