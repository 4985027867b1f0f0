"""`Readings`: rates and percentiles of the last minute, from counters that only grow."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import REGISTRY, CollectorRegistry

from rufus_serve.leader.api.overview.views import Spread

RATE_S, SPREAD_S = 10.0, 60.0

_COUNTERS = ("generation_tokens", "prompt_tokens", "prefix_cache_queries", "prefix_cache_hits")
_GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
_SPREADS = {
    "ttft": "time_to_first_token_seconds",
    "tpot": "request_time_per_output_token_seconds",
    "itl": "inter_token_latency_seconds",
}
_NAMES = [
    *(f"vllm:{name}_total" for name in _COUNTERS),
    *(f"vllm:{name}" for name in _GAUGES),
    *(f"vllm:{name}_bucket" for name in _SPREADS.values()),
]


@dataclass(frozen=True)
class Sample:
    """What vLLM's metrics said at one moment."""

    at: float
    """Monotonic seconds."""
    values: Mapping[tuple[str, str], float]
    """Counters and gauges by (name without `vllm:`, engine)."""
    buckets: Mapping[str, Mapping[float, float]]
    """Cumulative counts by name and upper bound, of all engines together."""

    @classmethod
    def read(cls, at: float, registry: CollectorRegistry = REGISTRY) -> "Sample":
        """Take one."""
        values: dict[tuple[str, str], float] = {}
        buckets: dict[str, dict[float, float]] = {}
        for family in registry.restricted_registry(_NAMES).collect():
            for sample in family.samples:
                name = sample.name.removeprefix("vllm:")
                if name.endswith("_bucket"):
                    counts = buckets.setdefault(name.removesuffix("_bucket"), {})
                    bound = float(sample.labels["le"])
                    counts[bound] = counts.get(bound, 0.0) + sample.value
                else:
                    key = name.removesuffix("_total"), sample.labels.get("engine", "0")
                    values[key] = values.get(key, 0.0) + sample.value
        return cls(at, values, buckets)

    def total(self, name: str) -> float:
        """Over all engines."""
        return sum(value for (each, _), value in self.values.items() if each == name)


@dataclass
class Readings:
    """The samples of the last minute, the newest last."""

    samples: deque[Sample] = field(default_factory=deque)

    def take(self, sample: Sample) -> None:
        """Add one, and forget what is too old to be compared with."""
        self.samples.append(sample)
        while len(self.samples) > 2 and self.samples[1].at <= sample.at - SPREAD_S:
            self.samples.popleft()

    def rate(self, name: str) -> float:
        """Growth a second of a counter, over the last ten."""
        if not self.samples:
            return 0.0
        new, old = self.samples[-1], self._before(RATE_S)
        elapsed = new.at - old.at
        return max(0.0, new.total(name) - old.total(name)) / elapsed if elapsed else 0.0

    def gauge(self, name: str, engine: str) -> float:
        """The newest value."""
        return self.samples[-1].values.get((name, engine), 0.0) if self.samples else 0.0

    def prefix_hit_rate(self, engine: str) -> float | None:
        """Share of prompt tokens found in the cache; None where none were looked up."""
        asked, found = (self._grown(f"prefix_cache_{what}", engine) for what in ("queries", "hits"))
        return found / asked if asked > 0 else None

    def spread(self, kind: str) -> Spread | None:
        """Percentiles of `ttft`, `tpot` or `itl`; None where nothing was measured."""
        if not self.samples:
            return None
        name = _SPREADS[kind]
        new = self.samples[-1].buckets.get(name, {})
        old = self._before(SPREAD_S).buckets.get(name, {}) if len(self.samples) > 1 else {}
        grown = {bound: count - old.get(bound, 0.0) for bound, count in sorted(new.items())}
        found = [_percentile(grown, share) for share in (0.5, 0.9, 0.99)]
        if None in found:
            return None
        p50, p90, p99 = (1e3 * (value or 0.0) for value in found)
        return Spread(p50=p50, p90=p90, p99=p99)

    def _grown(self, name: str, engine: str) -> float:
        if not self.samples:
            return 0.0
        old = self._before(SPREAD_S).values.get((name, engine), 0.0)
        return self.samples[-1].values.get((name, engine), 0.0) - old

    def _before(self, seconds: float) -> Sample:
        """The newest sample that is at least so old, or the oldest."""
        limit = self.samples[-1].at - seconds
        older = [sample for sample in self.samples if sample.at <= limit]
        return older[-1] if older else self.samples[0]


def _percentile(grown: Mapping[float, float], share: float) -> float | None:
    """By interpolation within a bucket, as Prometheus does it; None of nothing."""
    bounds, counts = list(grown), list(grown.values())
    if not counts or counts[-1] <= 0:
        return None
    rank = share * counts[-1]
    place = next(index for index, count in enumerate(counts) if count >= rank)
    if bounds[place] == float("inf"):
        return bounds[place - 1] if place else None
    low, before = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    within = counts[place] - before
    return low + (bounds[place] - low) * ((rank - before) / within if within else 1.0)


def growth_per(unit: float, new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, float]:
    """What each of `new` grew by, divided by `unit`."""
    return {name: (value - old.get(name, 0.0)) / unit for name, value in new.items()}
