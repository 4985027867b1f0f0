"""The best tokens of a row of logits, and the row's total; numpy alone, on whichever side asks.

Shape legend: R rows, V vocabulary, K candidates.
"""

import numpy as np

Array = np.ndarray
# The fewer tokens a slice holds, the fewer lie above the bound that slices give.
_SLICES_PER_CANDIDATE = 8


def best_ids(row: Array, count: int) -> Array:
    """Ids of the `count` largest logits of `row` [V], falling; equals in the order of their ids.

    A third of a partition's time: of V / n interleaved slices, `count` have a largest value at
    or above the `count`-th of these, so nothing below it is among the best.
    """
    count = min(count, len(row))
    if count <= 1:
        return row[:0].astype(np.int64) if count < 1 else np.array([row.argmax()])
    num_slices = min(len(row), _SLICES_PER_CANDIDATE * count)
    depth = len(row) // num_slices
    peaks = row[: depth * num_slices].reshape(depth, num_slices).max(axis=0)
    bound = np.partition(peaks, num_slices - count)[num_slices - count]
    if bound == -np.inf:
        ids = np.flatnonzero(row > bound)
        rest = np.flatnonzero(row == bound)[: max(0, count - ids.size)]
        ids = np.concatenate((ids, rest))
    else:
        ids = np.flatnonzero(row >= bound)
    if ids.size < count:
        # NaN compares with nothing; it comes last.
        ids = np.arange(len(row))
    best: Array = ids[np.argsort(-row[ids], kind="stable")[:count]]
    return best


def log_sum_exp(row: Array, temperature: float) -> float:
    """Logarithm of the sum of exp(`row` / `temperature`), over `row` [V] float32."""
    scaled = row if temperature == 1.0 else row / np.float32(temperature)
    peak = scaled.max(initial=-np.inf)
    if not np.isfinite(peak):
        return float(peak)
    return float(np.log(np.exp(scaled - peak).sum(dtype=np.float64)) + np.float64(peak))
