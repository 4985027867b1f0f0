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
        words = np.zeros((0, 0), np.int32) if words is None else _ints(words)
        places = np.full(num_rows, -1, np.int32) if places is None else _ints(places)
        numbers = np.ascontiguousarray(uniforms, np.float64)
        if (
            not _fits(known, num_rows)
            or not numbers.shape == places.shape == (num_rows,)
            or places.max(initial=-1) >= len(words)
        ):
            raise ValueError(f"what is known of {len(known.counts)} rows does not fit {num_rows}")
        known = _contiguous(known)
        every = np.frombuffer(b"".join(params), np.uint8)
        tokens = np.empty(num_rows, np.int64)
        self._functions.draw_tokens(
            structs.Draws(
                num_rows, known.counts.ctypes.data, known.logits.ctypes.data,
                known.ids.ctypes.data, known.log_totals.ctypes.data,
                known.num_named.ctypes.data, known.named_ids.ctypes.data,
                known.named_logits.ctypes.data, every.ctypes.data, numbers.ctypes.data,
                words.ctypes.data, words.shape[1], places.ctypes.data, tokens.ctypes.data,
            )
        )  # fmt: skip
        return tokens


def _contiguous(known: KnownLogits) -> KnownLogits:
    return KnownLogits(
        _ints(known.counts), _floats(known.logits), _ints(known.ids),
        np.ascontiguousarray(known.log_totals, np.float64),
        _ints(known.num_named), _ints(known.named_ids), _floats(known.named_logits),
    )  # fmt: skip


def _fits(known: KnownLogits, num_rows: int) -> bool:
    """Whether all arrays are of so many rows."""
    counts, num_named = known.counts, known.num_named
    return bool(
        counts.shape == num_named.shape == (num_rows,)
        and known.log_totals.shape == (num_rows, 2)
        and min(counts.min(initial=0), num_named.min(initial=0)) >= 0
        and counts.sum() == len(known.logits) == len(known.ids)
        and num_named.sum() == len(known.named_ids) == len(known.named_logits)
    )


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
