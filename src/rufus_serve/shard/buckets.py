"""Buckets: the compiled shapes, and which of them a step runs in."""

from collections.abc import Sequence
from dataclasses import dataclass

from rufus_serve.config.schema import BucketConfig
from rufus_serve.errors import RuntimeStepError

_SMALLEST_CONTEXT = 128


@dataclass(frozen=True)
class Buckets:
    """All compiled shapes, each list ascending."""

    prefill: tuple[int, ...]
    """New tokens of a prefill."""
    decode_batch: tuple[int, ...]
    """Rows of a decode."""
    context: tuple[int, ...]
    """Context lengths of both."""

    def prefill_size(self, num_new_tokens: int) -> int:
        """Padded new tokens of a prefill. Raises `RuntimeStepError`, as the next two do."""
        return smallest_holding(self.prefill, num_new_tokens, what="new tokens in a prefill")

    def decode_rows(self, num_rows: int) -> int:
        """Padded rows of a decode."""
        return smallest_holding(self.decode_batch, num_rows, what="rows in a decode")

    def context_size(self, context_len: int) -> int:
        """Padded context length."""
        return smallest_holding(self.context, context_len, what="tokens of context")


def smallest_holding(sizes: Sequence[int], count: int, *, what: str) -> int:
    """The smallest of `sizes` that holds `count`.

    Raises:
        RuntimeStepError: none does.
    """
    for size in sizes:
        if count <= size:
            return size
    raise RuntimeStepError(f"{count} {what} exceed the largest bucket; buckets are {list(sizes)}")


def resolve_buckets(config: BucketConfig, *, max_rows: int, max_model_len: int) -> Buckets:
    """The configured buckets; empty lists are filled in and limits are always covered.

    `max_rows` is of a decode, each token counted where rows have several.
    Buckets larger than a limit are cut to it: nothing could ever fill them.
    """
    return Buckets(
        prefill=_cut(config.prefill, max_model_len),
        decode_batch=_covering(config.decode_batch, max_rows, smallest=1),
        context=_covering(config.context, max_model_len, smallest=_SMALLEST_CONTEXT),
    )


def _covering(sizes: Sequence[int], limit: int, *, smallest: int) -> tuple[int, ...]:
    sizes = sizes or [smallest << shift for shift in range(limit.bit_length())]
    return _cut((*sizes, limit), limit)


def _cut(sizes: Sequence[int], limit: int) -> tuple[int, ...]:
    return tuple(sorted({min(size, limit) for size in sizes}))
