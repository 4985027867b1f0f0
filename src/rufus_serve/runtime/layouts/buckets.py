"""Which compiled graph NxD Inference takes for a call, and how to cut a prefill to fit one.

NxD Inference picks the graph itself; these functions foretell it, so that a step that fits none
is refused before any collective starts. Sizes are tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rufus_serve.errors import RuntimeStepError

SMALLEST_PREFIX_BUCKET = 128
"""With fewer new tokens, NxD Inference 0.8 takes a prefill over a prefix for a decode."""


def strict_bucket(length: int, buckets: Sequence[int]) -> int:
    """The bucket of `length` in the contiguous layout: larger than it, or the last one.

    Raises:
        RuntimeStepError: `length` exceeds the last bucket.
    """
    for bucket in buckets:
        if length < bucket:
            return bucket
    if length == buckets[-1]:
        return length
    raise RuntimeStepError(
        f"{length} tokens exceed the largest compiled bucket {buckets[-1]}; compile a larger one "
        "or lower max_model_len"
    )


@dataclass(frozen=True)
class Segment:
    """One prefill call in the block layout: reads `prefix` cached tokens, holds `size` more."""

    prefix: int
    """A prefix bucket, filled to its last token, or 0."""
    size: int
    """A prefill bucket."""
    computed: int
    """Tokens from here on are new; those between `prefix` and here are computed once more."""
    end: int
    """Context length once the call is done."""


def plan_prefill(
    num_computed: int, context_len: int, *, prefill: Sequence[int], prefix: Sequence[int]
) -> list[Segment]:
    """Calls that prefill tokens `num_computed` up to `context_len`, the last ends there.

    NxD Inference does not mask the unused end of a prefix bucket, so each call reads a prefix
    that fills its bucket and computes cached tokens beyond it again; those are not written.

    Raises:
        RuntimeStepError: the buckets leave a gap at some context length.
    """
    segments: list[Segment] = []
    computed = num_computed
    while True:
        last = _last_segment(computed, context_len, prefill, prefix)
        if last is not None:
            return [*segments, last]
        start = max(size for size in (0, *prefix) if size <= computed)
        end = start + prefill[-1]
        if end <= computed or (start and prefill[-1] < SMALLEST_PREFIX_BUCKET):
            raise RuntimeStepError(
                f"no compiled prefill goes on from {computed} cached tokens: prefix buckets "
                f"{list(prefix)}, prefill buckets {list(prefill)}; add a prefix bucket between "
                f"{computed - prefill[-1]} and {computed}"
            )
        segments.append(Segment(start, prefill[-1], computed, end))
        computed = end


def _last_segment(
    computed: int, context_len: int, prefill: Sequence[int], prefix: Sequence[int]
) -> Segment | None:
    """The cheapest single call that reaches `context_len`."""
    for size in prefill:
        for start in (0, *prefix):
            fits = start <= computed and context_len <= start + size
            if fits and (start == 0 or size >= SMALLEST_PREFIX_BUCKET):
                return Segment(start, size, computed, context_len)
    return None


def first_gap(limit: int, *, prefill: Sequence[int], prefix: Sequence[int]) -> int | None:
    """A context length up to `limit` from which no compiled prefill goes on, if there is one."""
    reach = prefill[-1]
    for start in prefix:
        if start > reach:
            return reach
        if prefill[-1] >= SMALLEST_PREFIX_BUCKET:
            reach = start + prefill[-1]
    return reach if reach < limit else None
