"""When requests begin: all at once up to a number in flight, or by a clock.

A closed loop waits for answers and so hides what a slow server does to its queue; an open loop
goes on as the world outside would.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count

import msgspec

from rufus_serve.errors import ConfigError


class ClosedLoop(msgspec.Struct, frozen=True):
    """`concurrency` requests in flight; the next begins when one ends."""

    concurrency: int

    @property
    def name(self) -> str:
        """For tables and file names."""
        return f"{self.concurrency} at once"


class OpenLoop(msgspec.Struct, frozen=True):
    """`rate` requests a second, in bursts of `burst` whose distances are exponential."""

    rate: float
    burst: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """For tables and file names."""
        bursts = f" in bursts of {self.burst}" if self.burst > 1 else ""
        return f"{self.rate:g}/s{bursts}"

    def starts(self) -> Iterator[float]:
        """Seconds from the beginning, without end."""
        draw = random.Random(self.seed)  # noqa: S311 - load, not secrets
        now = 0.0
        while True:
            for _ in range(self.burst):
                yield now
            now += draw.expovariate(self.rate / self.burst)


class Trace(msgspec.Struct, frozen=True):
    """Given moments."""

    seconds: tuple[float, ...]

    @property
    def name(self) -> str:
        """For tables and file names."""
        return f"trace of {len(self.seconds)}"

    def starts(self) -> Iterator[float]:
        """Seconds from the beginning."""
        return iter(self.seconds)


Arrivals = ClosedLoop | OpenLoop | Trace


def rates(text: str) -> tuple[float, ...]:
    """`1:32` doubles from 1 to 32; `1,4,9` are themselves.

    Raises:
        ConfigError: it is neither.
    """
    try:
        if ":" in text:
            first, last = (float(part) for part in text.split(":"))
            found: Sequence[float] = list(_doubled(first, last))
        else:
            found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise ConfigError(f"rates must be like 1:32 or 1,4,9, all above 0, got {text!r}")
    return tuple(found)


def _doubled(first: float, last: float) -> Iterator[float]:
    if first <= 0:
        return
    for power in count():
        rate = first * 2**power
        if rate >= last:
            yield last
            return
        yield rate
