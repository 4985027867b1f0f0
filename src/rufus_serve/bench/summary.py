"""Percentiles and rates of a run."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from rufus_serve.bench.stream import Record
from rufus_serve.errors import ConfigError

PERCENTILES = (50, 90, 99)
_MEASURES: dict[str, Callable[[Record], float]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What operators compare; times in milliseconds."""

    load: str
    requests: int
    """Answered in full."""
    errors: dict[str, int]
    duration_s: float
    input_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float | None
    """Requests a second within every limit of the SLO; None without one."""
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    itl_ms: dict[str, float]
    e2e_ms: dict[str, float]


def summarize(records: Sequence[Record], *, load: str, slo: dict[str, float]) -> Summary:
    """Numbers of `records`; `slo` has limits in milliseconds by measure."""
    good = [record for record in records if not record.error]
    end = max((record.end_s for record in records), default=0.0)
    duration = end - min((record.start_s for record in records), default=0.0)
    output = sum(record.output_tokens for record in good)
    within = sum(
        all(_MEASURES[name](r) * 1e3 <= limit for name, limit in slo.items()) for r in good
    )
    return Summary(
        load=load,
        requests=len(good),
        errors=dict(Counter(record.error for record in records if record.error).most_common()),
        duration_s=duration,
        input_tokens=sum(record.input_tokens for record in good),
        output_tokens=output,
        requests_per_s=_per(len(good), duration),
        output_tokens_per_s=_per(output, duration),
        goodput_per_s=_per(within, duration) if slo else None,
        ttft_ms=spread(record.ttft_s for record in good),
        tpot_ms=spread(record.tpot_s for record in good if record.output_tokens > 1),
        itl_ms=spread(gap for record in good for gap in record.itl_s),
        e2e_ms=spread(record.e2e_s for record in good),
    )


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Mean and percentiles in milliseconds; empty of nothing.

    Percentiles are interpolated between the two nearest ranks, as numpy's are.
    """
    values = sorted(seconds)
    if not values:
        return {}
    found = {"mean": sum(values) / len(values)}
    for percent in PERCENTILES:
        place = (len(values) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(values) - 1)
        found[f"p{percent}"] = values[low] + (values[high] - values[low]) * (place - low)
    return {name: 1e3 * value for name, value in found.items()}


def read_slo(texts: Sequence[str]) -> dict[str, float]:
    """`ttft:500` and the like, in milliseconds.

    Raises:
        ConfigError: an unknown measure, or no number.
    """
    limits = {}
    for text in texts:
        name, _, limit = text.partition(":")
        try:
            limits[name] = float(limit)
        except ValueError:
            name = ""
        if name not in _MEASURES:
            raise ConfigError(
                f"an SLO is one of {', '.join(_MEASURES)} with milliseconds, as ttft:500; "
                f"got {text!r}"
            )
    return limits


def _per(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s else 0.0
