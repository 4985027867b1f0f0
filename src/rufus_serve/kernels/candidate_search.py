"""`CandidateSearch`: candidates of rows of logits, by a kernel.

Shape legend: R rows, V vocabulary or a share of it, K candidates of a row, E its named tokens.
"""

import functools

import numpy as np

from rufus_serve.kernels import structs
from rufus_serve.kernels.library import KernelsUnavailable, Library, load_library
from rufus_serve.protocol.messages import Array, Candidates, RowWants


class CandidateSearch:
    """Any number of threads may use it at once."""

    def __init__(self, library: Library) -> None:
        self._find = library.functions.find_candidates

    def pick(self, logits: Array, wants: RowWants, *, first_id: int) -> Candidates:
        """What `wants` asks of `logits` [R, V] float32.

        Logits of named tokens are written to meanwhile, and put back.

        Raises:
            ValueError: `wants` is of other rows, or does not fit together.
        """
        logits = np.ascontiguousarray(logits, np.float32)
        counts, temperatures, named = (
            np.ascontiguousarray(wants.num_candidates, np.int32),
            np.ascontiguousarray(wants.temperatures, np.float32),
            np.ascontiguousarray(wants.token_ids, np.int32),
        )
        num_rows, vocab_size = logits.shape
        best_starts = _starts(counts.clip(0))
        named_starts = _starts(wants.num_token_ids)
        if (
            (counts.shape, temperatures.shape) != ((num_rows,), (num_rows, 2))
            or named_starts.shape != best_starts.shape
            or (wants.num_token_ids < 0).any()
            or named_starts[-1] != len(named)
        ):
            raise ValueError(f"wants of {counts.shape} rows do not fit {num_rows} rows of logits")
        found = Candidates(
            logits=np.empty(best_starts[-1], np.float32),
            ids=np.empty(best_starts[-1], np.int32),
            log_totals=np.empty((num_rows, 2)),
            token_logits=np.empty(len(named), np.float32),
        )
        self._find(
            structs.Candidates(
                logits.ctypes.data, num_rows, vocab_size, first_id, counts.ctypes.data,
                temperatures.ctypes.data, best_starts.ctypes.data, named_starts.ctypes.data,
                named.ctypes.data, found.logits.ctypes.data, found.ids.ctypes.data,
                found.log_totals.ctypes.data, found.token_logits.ctypes.data,
            )
        )  # fmt: skip
        return found


@functools.cache
def candidate_search() -> CandidateSearch | None:
    """The kernel; None where there are none."""
    try:
        return CandidateSearch(load_library())
    except KernelsUnavailable:
        return None


def _starts(counts: Array) -> Array:
    """[R + 1] where each row's part begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
