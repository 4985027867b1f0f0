"""`CandidateSearch`: candidates of rows of logits, by a kernel.

Shape legend: R rows, V vocabulary or a share of it, K candidates of a row, E its named tokens.
"""

import ctypes
import functools
import threading

import numpy as np

from rufus_serve.kernels import structs
from rufus_serve.kernels.library import KernelsUnavailable, Library, load_library
from rufus_serve.protocol.messages import Array, Candidates, RowWants

_WORTH_A_TEAM_BYTES = 1 << 22


class CandidateSearch:
    """Any number of threads may use it at once; one of them has a team's help with many logits."""

    def __init__(self, library: Library, *, num_threads: int = 1) -> None:
        """`num_threads`: of the team, its user included."""
        self._functions = library.functions
        self._alone = ctypes.c_void_p(library.functions.create_context(1))
        self._team = ctypes.c_void_p(library.functions.create_context(num_threads))
        self._team_is_busy = threading.Lock()

    def __del__(self) -> None:
        for name in ("_alone", "_team"):
            if hasattr(self, name):
                self._functions.destroy_context(getattr(self, name))

    def pick(self, logits: Array, wants: RowWants, *, first_id: int) -> tuple[Candidates, Array]:
        """The K candidates of `logits` [R, V] float32; how much of each row's total they have [R].

        That is of the total at the first temperature, and 0 where none is wanted. Logits of named
        tokens are written to meanwhile, and put back.

        Raises:
            ValueError: `wants` is of other rows, or does not fit together.
        """
        logits = np.ascontiguousarray(logits, np.float32)
        counts, temperatures, num_named, named = (
            np.ascontiguousarray(wants.num_candidates, np.int32),
            np.ascontiguousarray(wants.temperatures, np.float32),
            np.ascontiguousarray(wants.num_token_ids, np.int32),
            np.ascontiguousarray(wants.token_ids, np.int32),
        )
        num_rows, vocab_size = logits.shape
        if (
            (counts.shape, temperatures.shape) != ((num_rows,), (num_rows, 2))
            or num_named.shape != counts.shape
            or num_named.min(initial=0) < 0
            or num_named.sum() != len(named)
        ):
            raise ValueError(f"wants of {counts.shape} rows do not fit {num_rows} rows of logits")
        found = _room_for(np.maximum(counts, 0).sum(), num_rows, len(named))
        held = np.empty(num_rows)
        self._find(
            structs.Candidates(
                logits.ctypes.data, num_rows, vocab_size, first_id, counts.ctypes.data,
                temperatures.ctypes.data, num_named.ctypes.data, named.ctypes.data,
                found.logits.ctypes.data, found.ids.ctypes.data, found.log_totals.ctypes.data,
                found.token_logits.ctypes.data, held.ctypes.data,
            ),
            has_many=num_rows > 1 and logits.nbytes >= _WORTH_A_TEAM_BYTES,
        )  # fmt: skip
        return found, held

    def _find(self, wanted: structs.Candidates, *, has_many: bool) -> None:
        if has_many and self._team_is_busy.acquire(blocking=False):
            try:
                self._functions.find_candidates(self._team, wanted)
            finally:
                self._team_is_busy.release()
        else:
            self._functions.find_candidates(self._alone, wanted)


def _room_for(num_best: int, num_rows: int, num_named: int) -> Candidates:
    return Candidates(
        logits=np.empty(num_best, np.float32),
        ids=np.empty(num_best, np.int32),
        log_totals=np.empty((num_rows, 2)),
        token_logits=np.empty(num_named, np.float32),
    )


@functools.cache
def candidate_search(num_threads: int = 1) -> CandidateSearch | None:
    """The kernel, whose team has so many threads; None where there are none."""
    try:
        return CandidateSearch(load_library(), num_threads=num_threads)
    except KernelsUnavailable:
        return None
