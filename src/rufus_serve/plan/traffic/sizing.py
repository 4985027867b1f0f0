"""`size`: the cheapest groups that keep an SLO under a load, by trying them in simulation.

Shapes are tried in the order of the least that they could cost, by the work of their steps alone.
A shape ends when its cost cannot be below the best found.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from rufus_serve.errors import ModelError
from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Arrival, Demand
from rufus_serve.plan.traffic.measures import LossMeasures, Measures, Slo, measure, measure_loss
from rufus_serve.plan.traffic.simulation import Fleet, Loss, Outcome, simulate
from rufus_serve.plan.traffic.step_times import StepTimes

MOST_SIMULATED = 8
"""Groups in one try. A larger fleet is tried as so many groups with their share of the load, which
is pessimistic: fewer groups even out less."""
MOST_SIMULATED_LOSS = 24
_LEAST_REQUESTS = 2000
_TURNS = 8
"""Requests of a try, as a multiple of those that run at once."""
_MOST_GROUPS = 20_000
_TOLERANCE = 0.02
_AROUND = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
_NOT_CHEAPER = "cannot cost less than what was found"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One way to form a group."""

    num_nodes: int
    max_num_seqs: int
    cp_degree: int = 1
    attention_dp_degree: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        degrees = (("cp", self.cp_degree), ("dp", self.attention_dp_degree))
        hybrid = "".join(f", {name} {degree}" for name, degree in degrees if degree > 1)
        plural = "s" if self.num_nodes > 1 else ""
        return f"{self.num_nodes} node{plural}{hybrid}, batch {self.max_num_seqs}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape with what its simulation needs."""

    shape: Shape
    batching: Batching
    times: StepTimes
    recover_s: float
    front_s: float = 0.0
    between_s: float = 0.0
    shared_times: tuple[StepTimes, ...] = ()

    def fleet(self, num_groups: int, losses: tuple[Loss, ...] = ()) -> Fleet:
        """So many of these groups."""
        return Fleet(
            num_groups=num_groups,
            batching=self.batching,
            times=self.times,
            front_s=self.front_s,
            between_s=self.between_s,
            shared_times=self.shared_times,
            losses=losses,
        )


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation of the load."""

    num_groups: int
    meets: bool
    measures: Measures


class Sized(msgspec.Struct, frozen=True, kw_only=True):
    """What a shape needs."""

    shape: Shape
    least_groups: int
    """Fewer could not do the work, whatever the SLO."""
    num_groups: int = 0
    """0: not found."""
    reason: str = ""
    """Why it was not tried, or not to the end."""
    measures: Measures | None = None

    @property
    def num_nodes(self) -> int:
        """Of all groups."""
        return self.num_groups * self.shape.num_nodes


def size(
    candidates: Sequence[Candidate],
    demand: Demand,
    slo: Slo,
    on_shape: Callable[[str], None] = lambda _: None,
) -> list[Sized]:
    """All shapes, the cheapest that keeps the SLO first; `on_shape` is told of each beforehand.

    Raises:
        ModelError: none keeps it.
    """
    bounds = {each.shape: least_groups(each, demand) for each in candidates}
    ordered = sorted(candidates, key=lambda each: (
        bounds[each.shape] * each.shape.num_nodes, each.shape.max_num_seqs))  # fmt: skip
    best, found = _MOST_GROUPS, []
    for candidate in ordered:
        on_shape(candidate.shape.name)
        sized = _size_one(candidate, demand, slo, least=bounds[candidate.shape], best=best)
        if sized.num_groups:
            best = min(best, sized.num_nodes)
        found.append(sized)
    found.sort(key=lambda each: each.num_nodes or math.inf)
    if not found or not found[0].num_groups:
        reasons = "; ".join(f"{each.shape.name}: {each.reason}" for each in found)
        raise ModelError(f"no shape keeps the SLO at this load: {reasons or 'none fits'}")
    return found


def size_given(
    candidates: Sequence[Candidate], demand: Demand, slo: Slo, num_groups: int
) -> list[Sized]:
    """All shapes with `num_groups` groups, those that keep the SLO on the fewest nodes first."""
    found = []
    for candidate in candidates:
        tried = try_once(candidate, demand, slo, num_groups, to_the_end=True)
        found.append(
            Sized(
                shape=candidate.shape,
                least_groups=least_groups(candidate, demand),
                num_groups=num_groups,
                reason="" if tried.meets else "the SLO is not kept",
                measures=tried.measures,
            )
        )
    return sorted(found, key=lambda each: (bool(each.reason), each.num_nodes, _p99(each)))


def curve(candidate: Candidate, demand: Demand, slo: Slo, num_groups: int) -> tuple[Try, ...]:
    """Fewer and more groups than `num_groups`, simulated to the end."""
    counts = sorted({max(1, round(num_groups * share)) for share in _AROUND} | {num_groups + 1})
    return tuple(try_once(candidate, demand, slo, each, to_the_end=True) for each in counts)


def _p99(sized: Sized) -> float:
    return sized.measures.ttft_ms.get("p99", math.inf) if sized.measures else math.inf


def least_groups(candidate: Candidate, demand: Demand) -> int:
    """Groups whose steps, all full, do the work of the load."""
    prompt, output = demand.mean_prompt, demand.mean_output
    rows = candidate.batching.max_num_seqs
    decode_ms = candidate.times.decode_ms([int(prompt + output / 2)] * rows)
    calls = math.ceil(prompt / candidate.batching.largest_prefill)
    prefill = candidate.times.prefill_ms(max(1, int(prompt / calls)), 0) * calls
    each_s = (prefill + output * decode_ms / rows) / 1e3
    return max(1, math.ceil(demand.rate * each_s))


def try_once(
    candidate: Candidate, demand: Demand, slo: Slo, num_groups: int, *, to_the_end: bool = False
) -> Try:
    """Simulate `num_groups`, or a slice of them; unless `to_the_end`, until it is clearly slow."""
    simulated = min(num_groups, MOST_SIMULATED)
    count = max(_LEAST_REQUESTS, _TURNS * simulated * candidate.batching.max_num_seqs)
    arrivals = demand.arrivals(share=simulated / num_groups, count=count)
    num_warm = int(demand.warm_share * len(arrivals))
    outcome = simulate(
        candidate.fleet(simulated),
        arrivals,
        ttft_limit_s=0.0 if to_the_end else slo.ttft_ms / 1e3,
        # With so many late ones the 99th percentile is beyond the limit, whatever follows.
        most_late=num_warm + math.ceil(0.01 * len(arrivals)) + 1,
    )
    warm_s = arrivals[num_warm].at_s
    measures = measure(outcome, num_groups=simulated, from_s=warm_s)
    meets = not outcome.given_up and measures.meets(slo) and _keeps_up(outcome, arrivals)
    return Try(num_groups=num_groups, meets=meets, measures=measures)


def lose_one(candidate: Candidate, demand: Demand, slo: Slo, num_groups: int) -> LossMeasures:
    """Simulate the load with one node lost in its middle, and without."""
    simulated = min(num_groups, MOST_SIMULATED_LOSS)
    share, recover_s = simulated / num_groups, candidate.recover_s
    arrivals = demand.arrivals(share=share, count=int(demand.rate * share * 2 * recover_s) + 1)
    at_s = min(recover_s / 2, arrivals[len(arrivals) // 2].at_s)
    loss = Loss(group=simulated - 1, at_s=at_s, recover_s=recover_s)
    with_it = simulate(candidate.fleet(simulated, (loss,)), arrivals)
    without = simulate(candidate.fleet(simulated), arrivals)
    return measure_loss(with_it, without, loss, slo)


def _size_one(candidate: Candidate, demand: Demand, slo: Slo, *, least: int, best: int) -> Sized:
    shape = candidate.shape
    reason = _hopeless(candidate, demand, slo)
    if not reason and least * shape.num_nodes >= best:
        reason = _NOT_CHEAPER
    if reason:
        return Sized(shape=shape, least_groups=least, reason=reason)
    tries = _search(candidate, demand, slo, least, (best - 1) // shape.num_nodes)
    good = [each for each in tries if each.meets]
    if not good:
        is_first = best == _MOST_GROUPS
        reason = "keeps the SLO with no number of groups" if is_first else _NOT_CHEAPER
        return Sized(shape=shape, least_groups=least, reason=reason)
    chosen = min(good, key=lambda each: each.num_groups)
    return Sized(
        shape=shape,
        least_groups=least,
        num_groups=chosen.num_groups,
        measures=chosen.measures,
    )


def _search(candidate: Candidate, demand: Demand, slo: Slo, least: int, most: int) -> Iterator[Try]:
    """Tries that close in on the fewest groups; none above `most`."""
    low, high = least - 1, least
    while True:
        tried = try_once(candidate, demand, slo, high)
        yield tried
        if tried.meets:
            break
        low, wider = high, min(most, math.ceil(high * 1.3))
        if wider <= low or high > 8 * least:
            return
        high = wider
    while high - low > max(1, _TOLERANCE * high):
        middle = (low + high) // 2
        tried = try_once(candidate, demand, slo, middle)
        yield tried
        low, high = (low, middle) if tried.meets else (middle, high)


def _hopeless(candidate: Candidate, demand: Demand, slo: Slo) -> str:
    """Why not even an idle group keeps the SLO; empty if it does."""
    prompt = int(demand.mean_prompt)
    decode_ms = candidate.times.decode_ms([prompt])
    if slo.tpot_ms and decode_ms > slo.tpot_ms:
        return f"a decode takes {decode_ms:.1f} ms, the limit is {slo.tpot_ms:g}"
    calls = math.ceil(prompt / candidate.batching.largest_prefill)
    prefill_ms = calls * candidate.times.prefill_ms(max(1, prompt // calls), 0)
    if slo.ttft_ms and prefill_ms > slo.ttft_ms:
        return f"a prefill takes {prefill_ms:.0f} ms, the limit is {slo.ttft_ms:g}"
    return ""


def _keeps_up(outcome: Outcome, arrivals: Sequence[Arrival]) -> bool:
    """Whether the queue does not grow: the last quarter waits hardly longer than the second."""
    waits = sorted((job.arrival.at_s, job.first_s - job.arrival.at_s) for job in outcome.jobs)
    quarter = len(waits) // 4
    if len(arrivals) < _LEAST_REQUESTS or not quarter:
        return True
    early, late = (
        sorted(wait for _, wait in part)[quarter // 2]
        for part in (waits[quarter : 2 * quarter], waits[-quarter:])
    )
    return late < 2 * early + 1.0
