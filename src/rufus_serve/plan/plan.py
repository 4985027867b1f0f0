"""`make_plan`: memory, capacity, latency and start-up of one model on some nodes."""

import msgspec

from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.hardware import Instance
from rufus_serve.plan.latency import DecodeEstimate, Placement, decode_estimate, prefill_ms
from rufus_serve.plan.memory import (
    LINE_PADDING,
    CoreMemory,
    CoreWeights,
    core_memory,
    core_weights,
    kv_bytes_per_token,
    scratch_bytes,
)
from rufus_serve.plan.request import PlanRequest, check
from rufus_serve.plan.start_up import StartUp, start_up
from rufus_serve.plan.tensor_parallel import (
    AttentionShares,
    TensorParallel,
    attention_shares,
    divides,
    tensor_parallel,
)

MAX_NODES = 64
_CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_FORMAT_BYTES = {"bfloat16": 2, "int8": 2, "float32": 4}
"""Bytes per parameter of the checkpoint; int8 is made from bfloat16 while sharding."""
_READ_BYTES = {"bfloat16": 2, "int8": 4, "float32": 4}
"""Bytes per parameter in host memory; transformers reads in float32 what is to be quantized."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences that fit when each may grow to `context` tokens."""

    context: int
    sequences: int


class DraftShare(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the draft model that one core holds."""

    weights: int
    kv_per_token: int


NO_DRAFT = DraftShare(weights=0, kv_per_token=0)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the arithmetic says."""

    request: PlanRequest
    tp: TensorParallel
    attention: AttentionShares
    placement: Placement
    memory: CoreMemory
    capacity: tuple[Capacity, ...]
    decode: tuple[DecodeEstimate, ...]
    """For several values of max_num_seqs, with every sequence at full length."""
    first_token_ms: float
    """For one prompt of `request.prompt_tokens`."""
    start_up: StartUp
    draft: DraftShare = NO_DRAFT
    """Part of `memory`; steps are estimated without it, as nobody knows which drafts come true."""

    @property
    def shape(self) -> ModelShape:
        """The model."""
        return self.request.shape

    @property
    def instance(self) -> Instance:
        """The node."""
        return self.request.instance

    @property
    def weights(self) -> CoreWeights:
        """Bytes of weights of one core."""
        return self.placement.weights

    @property
    def fits(self) -> bool:
        """Whether every core holds its part."""
        return self.memory.fits


def make_plan(request: PlanRequest) -> Plan:
    """Plan `request`.

    Raises:
        ConfigError: the hardware cannot do it at any size, or the heads cannot be divided.
    """
    check(request)
    shape = request.shape
    tp = tensor_parallel(shape, request.degree, num_nodes=request.num_nodes)
    attention = attention_shares(
        shape,
        request.degree,
        context_parallel=request.cp_degree,
        data_parallel=request.attention_dp_degree,
    )
    placement = _placement(request, tp, attention)
    draft = _draft_share(request)
    memory = _memory(request, placement, draft)
    return Plan(
        request=request,
        tp=tp,
        attention=attention,
        placement=placement,
        memory=memory,
        capacity=_capacity(request, memory),
        decode=tuple(
            decode_estimate(placement, rows=rows, context=request.max_model_len)
            for rows in _row_counts(request.max_num_seqs)
        ),
        first_token_ms=prefill_ms(placement, prompts=1, tokens=_prompt_bucket(request)),
        start_up=_start_up(request, placement, memory),
        draft=draft,
    )


def _start_up(request: PlanRequest, placement: Placement, memory: CoreMemory) -> StartUp:
    num_params = sum(shape.num_params for shape in request.shapes)
    return start_up(
        request.instance,
        checkpoint_bytes=num_params * _FORMAT_BYTES[request.weights],
        read_bytes=num_params * _READ_BYTES[request.weights],
        shard_bytes=memory.weights,
        num_nodes=request.num_nodes,
        graphs_ms=_graphs_ms(request, placement),
    )


def _draft_share(request: PlanRequest) -> DraftShare:
    if request.draft is None:
        return NO_DRAFT
    tp = tensor_parallel(request.draft, request.degree, num_nodes=request.num_nodes)
    return DraftShare(
        weights=core_weights(request.draft, tp, request.weights).total,
        kv_per_token=kv_bytes_per_token(request.draft, tp, request.weights),
    )


def _placement(request: PlanRequest, tp: TensorParallel, attention: AttentionShares) -> Placement:
    return Placement(
        instance=request.instance,
        shape=request.shape,
        weights=core_weights(request.shape, tp, request.weights, attention=attention),
        kv_per_token=kv_bytes_per_token(
            request.shape,
            attention.decode,
            request.weights,
            data_parallel=request.attention_dp_degree,
        ),
        num_nodes=request.num_nodes,
        degree=request.degree,
        attention_dp_degree=request.attention_dp_degree,
    )


def smallest_fit(request: PlanRequest) -> Plan | None:
    """The plan with the fewest nodes that fits; None if none does."""
    most = MAX_NODES if request.instance.efa_gbit_per_s else 1
    for num_nodes in range(1, most + 1):
        candidate = request.on_nodes(num_nodes)
        if all(divides(shape, candidate.degree) for shape in request.shapes):
            plan = make_plan(candidate)
            if plan.fits:
                return plan
    return None


def _memory(request: PlanRequest, placement: Placement, draft: DraftShare) -> CoreMemory:
    scratch = scratch_bytes(
        request.instance,
        request.shape,
        prefill_tokens=request.compiled.prefill[-1],
        rows=request.max_num_seqs,
        num_graphs=_num_graphs(request),
    )
    return core_memory(
        request.instance,
        weights=placement.weights.total + draft.weights,
        scratch=scratch,
        kv_per_token=placement.kv_per_token + draft.kv_per_token,
        tokens=request.max_model_len,
        rows=request.max_num_seqs,
    )


def _capacity(request: PlanRequest, memory: CoreMemory) -> tuple[Capacity, ...]:
    room = max(0, memory.hbm - memory.weights - memory.scratch)
    limit = request.shape.max_model_len
    contexts = {length for length in _CONTEXTS if length <= limit} | {request.max_model_len}
    return tuple(
        Capacity(context=length, sequences=room // (memory.kv_per_token * (length + LINE_PADDING)))
        for length in sorted(contexts)
    )


def _graphs_ms(request: PlanRequest, placement: Placement) -> list[float]:
    """A call to each graph."""
    prefills = [prefill_ms(placement, prompts=1, tokens=n) for n in request.compiled.prefill]
    decodes = [
        decode_estimate(placement, rows=request.max_num_seqs, context=n).max_ms
        for n in request.compiled.context
    ]
    return prefills + decodes


def _num_graphs(request: PlanRequest) -> int:
    """One per prefill bucket, and one decode per context bucket, always of all rows."""
    return len(request.compiled.prefill) + len(request.compiled.context)


def _row_counts(most: int) -> list[int]:
    """Powers of two up to `most`, and `most`."""
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def _prompt_bucket(request: PlanRequest) -> int:
    """Tokens that a prompt is padded to."""
    return next(size for size in request.compiled.prefill if size >= request.prompt_tokens)
