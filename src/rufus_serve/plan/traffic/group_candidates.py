"""The shapes worth trying for a model: the fewest nodes that fit and twice as many, all batches."""

from collections.abc import Iterator

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.plan.plan import MAX_NODES, Plan, make_plan, smallest_fit
from rufus_serve.plan.request import PlanRequest
from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.sizing import Candidate, Shape
from rufus_serve.plan.traffic.step_times import Measured, PlannedTimes, by_groups

_BATCHES = (4, 8, 16, 32, 64)


def plans(request: PlanRequest, *, nodes_given: bool, batch_given: bool) -> Iterator[Plan]:
    """Those of `request` that fit; what is given is not varied."""
    batches = (request.max_num_seqs,) if batch_given else _BATCHES
    for batch in batches:
        base = msgspec.structs.replace(request, max_num_seqs=batch)
        for asked in _node_counts(base, nodes_given=nodes_given):
            try:
                plan = make_plan(asked)
            except ConfigError:
                continue
            if plan.fits:
                yield plan


def _node_counts(base: PlanRequest, *, nodes_given: bool) -> Iterator[PlanRequest]:
    if nodes_given:
        yield from _with_hybrid(base)
        return
    smallest = smallest_fit(base)
    if smallest is None:
        return
    fewest = smallest.request.num_nodes
    yield from _with_hybrid(base.on_nodes(fewest))
    if base.instance.efa_gbit_per_s and 2 * fewest <= MAX_NODES:
        yield from _with_hybrid(base.on_nodes(2 * fewest))


def _with_hybrid(asked: PlanRequest) -> Iterator[PlanRequest]:
    """As it is, and with attention kept on each node."""
    yield asked
    if asked.num_nodes > 1 and asked.cp_degree == asked.attention_dp_degree == 1:
        yield asked.with_attention_on_nodes()


def of_plan(plan: Plan, *, recover_s: float | None = None) -> Candidate:
    """With the planner's step times, and its time to recover unless another is known."""
    return Candidate(
        shape=_shape(plan),
        batching=Batching.of(plan),
        times=PlannedTimes(plan),
        recover_s=plan.start_up.recover_s if recover_s is None else recover_s,
    )


def of_measured(measured: Measured, *, num_nodes: int, recover_s: float) -> Candidate:
    """With measured ones."""
    times, *shared = by_groups(measured)
    return Candidate(
        shape=Shape(num_nodes=num_nodes, max_num_seqs=measured.batching.max_num_seqs),
        batching=measured.batching,
        times=times,
        recover_s=recover_s,
        front_s=measured.front_ms / 1e3,
        between_s=measured.between_ms / 1e3,
        shared_times=tuple(shared),
    )


def _shape(plan: Plan) -> Shape:
    request = plan.request
    return Shape(
        num_nodes=request.num_nodes,
        max_num_seqs=request.max_num_seqs,
        cp_degree=request.cp_degree,
        attention_dp_degree=request.attention_dp_degree,
    )
