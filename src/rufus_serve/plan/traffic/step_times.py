"""How long steps take: by the planner's formulas, or as measured."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.plan.latency import decode_estimate, prefill_ms
from rufus_serve.plan.plan import Plan
from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.runtime.layouts.buckets import strict_bucket


class StepTimes(Protocol):
    """Milliseconds from sending a step until its tokens are there."""

    def prefill_ms(self, tokens: int, computed: int) -> float:
        """A prefill of `tokens` new tokens behind `computed` cached ones."""

    def decode_ms(self, contexts: Sequence[int]) -> float:
        """A decode of as many rows as `contexts`, each of so many tokens."""


class PlannedTimes:
    """Those of a plan; every step is as large as its bucket, and a decode has all rows."""

    def __init__(self, plan: Plan) -> None:
        placement, rows = plan.placement, plan.request.max_num_seqs
        self._compiled = plan.request.compiled
        self._prefill = {
            size: prefill_ms(placement, prompts=1, tokens=size) for size in self._compiled.prefill
        }
        self._decode = {
            size: decode_estimate(placement, rows=rows, context=size).max_ms
            for size in self._compiled.context
        }

    def prefill_ms(self, tokens: int, computed: int) -> float:
        """Contiguous KV prefills whole prompts, so `computed` is 0."""
        return self._prefill[strict_bucket(tokens + computed, self._compiled.prefill)]

    def decode_ms(self, contexts: Sequence[int]) -> float:
        """The longest row decides."""
        return self._decode[strict_bucket(max(contexts) - 1, self._compiled.context)]


_Count = Annotated[int, msgspec.Meta(ge=1)]


class PrefillPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured prefill."""

    tokens: int
    ms: float
    computed: int = 0
    groups: _Count = 1
    """At work on the machine that they share."""


class DecodePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured decode; `context` is the mean of its rows."""

    rows: int
    context: int
    ms: float
    groups: _Count = 1
    """At work on the machine that they share."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of measured step times, and how the group that they are of forms its steps."""

    batching: Batching
    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    front_ms: float = 0.0
    """From the client to the scheduler and back, for each request."""
    between_ms: float = 0.0
    """Between two steps."""


class MeasuredTimes:
    """Bilinear between the points measured with so many groups at work, linear beyond them.

    Raises:
        ConfigError: the points are no complete grid.
    """

    def __init__(self, measured: Measured, *, groups: int = 1) -> None:
        prefill = [(p.tokens, p.computed, p.ms) for p in measured.prefill if p.groups == groups]
        decode = [(p.rows, p.context, p.ms) for p in measured.decode if p.groups == groups]
        of_groups = f" of {groups} groups" if groups > 1 else ""
        self._prefill = Grid.of(prefill, f"prefill{of_groups}")
        self._decode = Grid.of(decode, f"decode{of_groups}")

    def prefill_ms(self, tokens: int, computed: int) -> float:
        """By new and cached tokens."""
        return self._prefill.at(tokens, computed)

    def decode_ms(self, contexts: Sequence[int]) -> float:
        """By rows and their mean context."""
        return self._decode.at(len(contexts), sum(contexts) // len(contexts))


def by_groups(measured: Measured) -> list[MeasuredTimes]:
    """With 1, 2, ... groups at work.

    Raises:
        ConfigError: points are missing.
    """
    counted = [p.groups for p in measured.prefill] + [p.groups for p in measured.decode]
    most = max(counted, default=1)
    return [MeasuredTimes(measured, groups=groups) for groups in range(1, most + 1)]


class Grid:
    """A table over two axes."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], cells: dict[tuple[float, float], float]
    ) -> None:
        self._xs, self._ys, self._cells = xs, ys, cells
        self.at = lru_cache(maxsize=65536)(self._at)

    @classmethod
    def of(cls, points: Sequence[tuple[float, float, float]], what: str) -> "Grid":
        """The table of (x, y, value); raises ConfigError if a cell is missing."""
        cells = {(x, y): value for x, y, value in points}
        xs, ys = (sorted({key[axis] for key in cells}) for axis in (0, 1))
        missing = [(x, y) for x in xs for y in ys if (x, y) not in cells]
        if missing or not cells:
            raise ConfigError(
                f"{what} needs a time for every pair of {xs} and {ys}; missing: {missing[:3]}"
            )
        return cls(xs, ys, cells)

    def _at(self, x: float, y: float) -> float:
        (left, right, across), (low, high, up) = _place(self._xs, x), _place(self._ys, y)
        cells = self._cells
        below = cells[left, low] + across * (cells[right, low] - cells[left, low])
        above = cells[left, high] + across * (cells[right, high] - cells[left, high])
        return max(0.0, below + up * (above - below))


def _place(marks: Sequence[float], value: float) -> tuple[float, float, float]:
    """The two marks that `value` lies between or behind, and how far it is to the second."""
    if len(marks) == 1:
        return marks[0], marks[0], 0.0
    first = min(max(bisect_right(marks, value) - 1, 0), len(marks) - 2)
    low, high = marks[first], marks[first + 1]
    return low, high, (value - low) / (high - low)


def read_measured(path: Path) -> Measured:
    """Read a file of measured step times.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} holds no measured step times: {error}") from error
