"""What users feel of a simulated load, and what a lost node costs them."""

from collections.abc import Sequence

import msgspec
import numpy as np

from rufus_serve.plan.traffic.engine import Job
from rufus_serve.plan.traffic.simulation import Loss, Outcome

PERCENTILES = (50, 99)


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the 99th percentiles in milliseconds; 0: none."""

    ttft_ms: float = 0.0
    tpot_ms: float = 0.0


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in milliseconds by percentile, and rates."""

    num_requests: int
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    output_tokens_per_s: float
    utilization: float
    """Share of the time in which a group computes."""

    def meets(self, slo: Slo) -> bool:
        """Whether both 99th percentiles are within their limits."""
        return all(
            not limit or found.get("p99", 0.0) <= limit
            for found, limit in ((self.ttft_ms, slo.ttft_ms), (self.tpot_ms, slo.tpot_ms))
        )


class LossMeasures(msgspec.Struct, frozen=True, kw_only=True):
    """The loss of one node, beside the same load without one."""

    recover_s: float
    num_moved: int
    """Streams that went on in another group."""
    longest_pause_ms: float
    """Of any stream."""
    num_late: int
    """Requests beyond the SLO while the group was away."""
    num_late_without: int
    """The same requests without the loss."""
    tokens_lost_share: float
    """Of the output between the loss and the return, against that without the loss."""


def measure(outcome: Outcome, *, num_groups: int, from_s: float = 0.0) -> Measures:
    """Of the requests that came at `from_s` or later."""
    jobs = [job for job in outcome.jobs if job.arrival.at_s >= from_s]
    began = min((job.arrival.at_s for job in jobs), default=0.0)
    ended = max((job.last_s for job in jobs), default=0.0)
    tokens = sum(job.delivered for job in jobs)
    return Measures(
        num_requests=len(jobs),
        ttft_ms=_spread([ttft_s(job) for job in jobs]),
        tpot_ms=_spread([tpot_s(job) for job in jobs if job.delivered > 1]),
        e2e_ms=_spread([job.last_s - job.arrival.at_s for job in jobs]),
        output_tokens_per_s=tokens / (ended - began) if ended > began else 0.0,
        utilization=outcome.busy_s / (outcome.end_s * num_groups) if outcome.end_s else 0.0,
    )


def measure_loss(with_it: Outcome, without: Outcome, loss: Loss, slo: Slo) -> LossMeasures:
    """Compare a load with and without `loss`; both have one group for each of the other."""
    back_s = loss.at_s + loss.recover_s
    lost, had = (_tokens(each, loss.at_s, back_s) for each in (with_it, without))
    return LossMeasures(
        recover_s=loss.recover_s,
        num_moved=sum(job.num_moves > 0 for job in with_it.jobs),
        longest_pause_ms=1e3 * max((job.longest_pause_s for job in with_it.jobs), default=0.0),
        num_late=_num_late(with_it, loss.at_s, back_s, slo),
        num_late_without=_num_late(without, loss.at_s, back_s, slo),
        tokens_lost_share=max(0.0, 1 - lost / had) if had else 0.0,
    )


def ttft_s(job: Job) -> float:
    """To the first token."""
    return job.first_s - job.arrival.at_s


def tpot_s(job: Job) -> float:
    """Per token after the first."""
    return (job.last_s - job.first_s) / max(1, job.delivered - 1)


def _num_late(outcome: Outcome, from_s: float, to_s: float, slo: Slo) -> int:
    return sum(
        bool(slo.ttft_ms and ttft_s(job) * 1e3 > slo.ttft_ms)
        or bool(slo.tpot_ms and tpot_s(job) * 1e3 > slo.tpot_ms)
        for job in outcome.jobs
        if job.last_s >= from_s and job.arrival.at_s < to_s
    )


def _tokens(outcome: Outcome, from_s: float, to_s: float) -> int:
    return sum(
        count for second, count in outcome.tokens_by_second.items() if from_s <= second < to_s
    )


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    found = np.percentile(np.array(seconds) * 1e3, PERCENTILES)
    return {f"p{name}": float(value) for name, value in zip(PERCENTILES, found, strict=True)}
