"""`CandidateDraw`: rows' tokens, drawn from what is known of them, by a kernel.

Shape legend: R rows, K candidates of a row, E its named tokens, G bitmasks, W words of each.
"""

import functools
from collections.abc import Sequence

import msgspec
import numpy as np

from rufus_serve.kernels import structs
from rufus_serve.kernels.library import KernelsUnavailable, Library, load_library
from rufus_serve.protocol.messages import Array

_GREEDY, _ONLY_NAMED, _NEEDS_TOTAL = 1, 2, 4


def draw_params(
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    is_greedy: bool,
    only_named: bool,
    needs_total: bool,
) -> bytes:
    """How a request's rows are drawn. `top_k` 0, `top_p` 1 and `min_p` 0 keep all tokens."""
    flags = _GREEDY * is_greedy | _ONLY_NAMED * only_named | _NEEDS_TOTAL * needs_total
    return bytes(structs.DrawParams(top_p, min_p, temperature, top_k, flags))


class KnownLogits(msgspec.Struct, frozen=True):
    """What is known of rows, one after the other."""

    counts: Array
    """[R] K."""
    logits: Array
    """[sum of K] float32, falling in each row; equals by their ids."""
    ids: Array
    log_totals: Array
    """[R, 2] float64, of a row without its named tokens; the first is at its temperature."""
    num_named: Array
    """[R] E."""
    named_ids: Array
    """[sum of E]"""
    named_logits: Array
    """[sum of E] as they are drawn from."""


class CandidateDraw:
    """Any number of threads may use it at once."""

    def __init__(self, library: Library) -> None:
        self._functions = library.functions

    def tokens(
        self,
        known: KnownLogits,
        params: Sequence[bytes],
        uniforms: Array,
        *,
        words: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """The token that each row's number of `uniforms` [R] draws, [R]; -1 if that is not known.

        `params`: of each row, by `draw_params`. `words` [G, W] int32 are grammars' bitmasks, and
        `places` [R] each row's one, below 0 for none.

        Raises:
            ValueError: the arrays are not of the same rows.
        """
        num_rows = len(params)
        counts, num_named = _ints(known.counts), _ints(known.num_named)
        logits, ids = _floats(known.logits), _ints(known.ids)
        named, named_logits = _ints(known.named_ids), _floats(known.named_logits)
        totals = np.ascontiguousarray(known.log_totals, np.float64)
        numbers = np.ascontiguousarray(uniforms, np.float64)
        words = np.zeros((0, 0), np.int32) if words is None else _ints(words)
        places = np.full(num_rows, -1, np.int32) if places is None else _ints(places)
        if (
            not counts.shape == num_named.shape == numbers.shape == places.shape == (num_rows,)
            or totals.shape != (num_rows, 2)
            or min(counts.min(initial=0), num_named.min(initial=0)) < 0
            or not counts.sum() == len(logits) == len(ids)
            or not num_named.sum() == len(named) == len(named_logits)
            or places.max(initial=-1) >= len(words)
        ):
            raise ValueError(f"what is known of {counts.shape} rows does not fit {num_rows} rows")
        every = np.frombuffer(b"".join(params), np.uint8)
        tokens = np.empty(num_rows, np.int64)
        self._functions.draw_tokens(
            structs.Draws(
                num_rows, counts.ctypes.data, logits.ctypes.data, ids.ctypes.data,
                totals.ctypes.data, num_named.ctypes.data, named.ctypes.data,
                named_logits.ctypes.data, every.ctypes.data,
                numbers.ctypes.data, words.ctypes.data, words.shape[1], places.ctypes.data,
                tokens.ctypes.data,
            )
        )  # fmt: skip
        return tokens


@functools.cache
def candidate_draw() -> CandidateDraw | None:
    """The kernel; None where there is none."""
    try:
        return CandidateDraw(load_library())
    except KernelsUnavailable:
        return None


def _ints(array: Array) -> Array:
    return np.ascontiguousarray(array, np.int32)


def _floats(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)
