"""What clients ask and when: made up from rates and lengths, or given."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from rufus_serve.errors import ConfigError

_Z99 = 2.3263
"""99th percentile of the normal distribution with deviation 1."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    at_s: float
    tokens: Sequence[int]
    """Of the prompt. Equal beginnings may be cached; made-up prompts have none."""
    num_output: int


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of token counts, cut at `most`."""

    kind: str
    low: int
    """`uniform`: the least; `lognormal`: the median."""
    high: int
    """`uniform`: the most; `lognormal`: the 99th percentile."""

    @property
    def mean(self) -> float:
        """Expected value."""
        if self.kind == "uniform":
            return (self.low + self.high) / 2
        return self.low * math.exp(self._sigma**2 / 2)

    @property
    def _sigma(self) -> float:
        return math.log(self.high / self.low) / _Z99

    def draw(self, source: random.Random, *, most: int) -> int:
        """One length of at least 1."""
        if self.kind == "uniform":
            return min(most, source.randint(self.low, self.high))
        return max(1, min(most, round(self.low * math.exp(source.gauss(0, self._sigma)))))


class Demand(Protocol):
    """What is asked of a server."""

    @property
    def rate(self) -> float:
        """Requests a second."""

    @property
    def mean_prompt(self) -> float:
        """Tokens."""

    @property
    def mean_output(self) -> float:
        """Tokens."""

    @property
    def warm_share(self) -> float:
        """Of the requests, the first ones that meet an emptier server than the rest."""

    def arrivals(self, *, share: float, count: int) -> list[Arrival]:
        """The requests of a server that gets `share` of all: `count`, unless they are given."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Made-up requests of Poisson arrivals.

    Raises:
        ConfigError: the longest sequence cannot hold them, or there are none.
    """

    rate: float
    prompt: Lengths
    output: Lengths
    max_model_len: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate <= 0 or not math.isfinite(self.rate):
            raise ConfigError(f"the load must be above 0 requests a second, got {self.rate:g}")
        needed = self.prompt.low + self.output.low
        if needed > self.max_model_len:
            raise ConfigError(
                f"prompts of {self.prompt.low} and outputs of {self.output.low} tokens do not "
                f"fit max_model_len {self.max_model_len}; set --max-model-len {needed} or more"
            )

    @property
    def mean_prompt(self) -> float:
        """As drawn."""
        return self.prompt.mean

    @property
    def mean_output(self) -> float:
        """As drawn."""
        return self.output.mean

    @property
    def warm_share(self) -> float:
        """The server is empty at first."""
        return 0.1

    def arrivals(self, *, share: float, count: int) -> list[Arrival]:
        """`count` requests; the same ones at another pace for another `share`."""
        return list(islice(self._made_up(self.rate * share), count))

    def _made_up(self, rate: float) -> Iterator[Arrival]:
        source = random.Random(self.seed)  # noqa: S311 - load, not secrets
        now, first_id = 0.0, 0
        while True:
            now += source.expovariate(rate)
            prompt = self.prompt.draw(source, most=self.max_model_len - 1)
            output = self.output.draw(source, most=self.max_model_len - prompt)
            tokens = range(first_id, first_id + prompt)
            yield Arrival(at_s=now, tokens=tokens, num_output=output)
            first_id += prompt


class Trace(msgspec.Struct, frozen=True):
    """Given requests, ascending in time.

    Raises:
        ConfigError: they say nothing of a rate.
    """

    requests: tuple[Arrival, ...]

    def __post_init__(self) -> None:
        if len(self.requests) < 2 or self.requests[-1].at_s <= self.requests[0].at_s:
            raise ConfigError("a trace needs two requests or more, at different moments")

    @property
    def rate(self) -> float:
        """Over the whole trace."""
        first, last = self.requests[0], self.requests[-1]
        return (len(self.requests) - 1) / (last.at_s - first.at_s)

    @property
    def mean_prompt(self) -> float:
        """As given."""
        return sum(len(each.tokens) for each in self.requests) / len(self.requests)

    @property
    def mean_output(self) -> float:
        """As given."""
        return sum(each.num_output for each in self.requests) / len(self.requests)

    @property
    def warm_share(self) -> float:
        """Every request counts."""
        return 0.0

    def arrivals(self, *, share: float, count: int) -> list[Arrival]:  # noqa: ARG002 - see Demand
        """Every n-th of them."""
        return [
            each
            for index, each in enumerate(self.requests)
            if math.floor((index + 1) * share) > math.floor(index * share)
        ]


def read_lengths(text: str) -> Lengths:
    """`512` is itself, `128:2048` uniform, `400,1600` log-normal by median and 99th percentile.

    Raises:
        ConfigError: it is none of these.
    """
    mark = "," if "," in text else ":"
    parts = text.split(mark)
    if all(part.isdigit() for part in parts) and len(parts) <= 2:
        low, high = int(parts[0]), int(parts[-1])
        if 0 < low <= high:
            return Lengths("lognormal" if mark == "," and low < high else "uniform", low, high)
    raise ConfigError(
        f"lengths must be like 512, 128:2048 (from, to) or 400,1600 (median, 99th percentile), "
        f"above 0 and ascending; got {text!r}"
    )
