"""What to do about a plan: replicas or one group, and combinations known to fail."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.plan.latency import DecodeEstimate
from rufus_serve.plan.plan import Plan, make_plan, smallest_fit
from rufus_serve.units import gib

_TRIED_CORES = (2, 16, 32)
_HOST_GB_PER_S = (8, 3)
"""Fastest and slowest copy from a device to its host; estimated, not measured."""
_PICK_MS = 0.21 / 128256
"""Of finding 256 candidates, per logit of a row (`runtime/candidates.py`, one core of an EPYC)."""


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One remark about a plan."""

    level: Literal["recommendation", "warning", "note"]
    text: str
    source: str = ""


def advice(plan: Plan) -> tuple[Advice, ...]:
    """Everything worth saying of `plan`, the most important first."""
    found = [*_placement(plan), *_known_bad(plan), *_notes(plan)]
    order = ("recommendation", "warning", "note")
    return tuple(sorted(found, key=lambda item: order.index(item.level)))


def _placement(plan: Plan) -> Iterator[Advice]:
    if not plan.fits:
        yield Advice(level="recommendation", text=_what_fits(plan))
        return
    if plan.request.num_nodes == 1:
        yield Advice(
            level="recommendation",
            text="One node holds it. For more throughput add replicas, each a node of its own.",
        )
        return
    enough = smallest_fit(plan.request)
    if enough is None or enough.request.num_nodes >= plan.request.num_nodes:
        text = f"{plan.request.num_nodes} nodes are the fewest that hold this load."
    else:
        text = _replicas(plan, enough)
    yield Advice(level="recommendation", text=text)


def _replicas(plan: Plan, enough: Plan) -> str:
    nodes, needed = plan.request.num_nodes, enough.request.num_nodes
    alone, group, copies = enough.decode[-1], plan.decode[-1], nodes // needed
    each = "one node" if needed == 1 else f"{needed} nodes"
    return (
        f"Run {copies} replica{'s' * (copies > 1)} of {each}, not one group of {nodes}: the load "
        f"fits {each}. With {alone.rows} sequences a token takes {_span(alone)} ms on {each} and "
        f"{_span(group)} ms on {nodes}: more nodes divide only the weight and KV terms, "
        "while every layer's all-reduces cross the network. That is about "
        f"{copies * alone.tokens_per_s:,.0f} tokens/s against {group.tokens_per_s:,.0f}."
    )


def _span(estimate: DecodeEstimate) -> str:
    low, high = f"{estimate.min_ms:.1f}", f"{estimate.max_ms:.1f}"
    return low if low == high else f"{low} to {high}"


def _what_fits(plan: Plan) -> str:
    short = f"It does not fit: each core is {gib(-plan.memory.free)} short."
    found = smallest_fit(plan.request)
    if found is None:
        return f"{short} No number of {plan.instance.name} nodes holds it; {_smaller(plan)}."
    nodes = found.request.num_nodes
    return f"{short} {nodes} node{'s' * (nodes > 1)} would hold it; or {_smaller(plan)}."


def _smaller(plan: Plan) -> str:
    if plan.memory.max_sequences:
        return f"lower max_num_seqs to {plan.memory.max_sequences}"
    lower = "lower max_model_len"
    return lower if plan.request.weights == "int8" else f"{lower} or use int8 weights"


def _known_bad(plan: Plan) -> Iterator[Advice]:
    yield from _llama_70b(plan)
    yield from _cores(plan)
    preparing = plan.start_up
    if not preparing.compiles_on_node:
        yield Advice(
            level="warning",
            text=f"Compiling and sharding need about {gib(preparing.compile_host_bytes)} of host "
            f"memory, {plan.instance.name} has {gib(preparing.host_bytes)}; the compiler would be "
            "killed without a message. Run `rufus-serve compile` on a larger host.",
            source="https://github.com/aws-neuron/aws-neuron-sdk/issues/1222",
        )
    if plan.request.num_nodes > 1:
        yield Advice(
            level="warning",
            text="The Neuron documentation calls several nodes a future feature of NxD Inference; "
            "the network terms here were never measured.",
            source="libraries/nxd-inference/overview-index.rst",
        )
    if plan.shape.quantization:
        yield Advice(
            level="warning",
            text=f"The checkpoint is quantized ({plan.shape.quantization}); the plan counts "
            f"{plan.request.weights} weights made from an unquantized one.",
        )


def _cores(plan: Plan) -> Iterator[Advice]:
    cores, family = plan.request.cores_per_node, plan.instance.family
    if family.startswith("trn1") and cores not in _TRIED_CORES:
        yield Advice(
            level="warning",
            text=f"{cores} cores per node: NxD Inference's tests and examples on Trn1 use "
            f"{', '.join(map(str, _TRIED_CORES))}; another number may have no collectives.",
            source="test/integration/tp32",
        )


def _llama_70b(plan: Plan) -> Iterator[Advice]:
    shape = plan.shape
    is_70b = (shape.model_type, shape.num_layers, shape.hidden_size) == ("llama", 80, 8192)
    if not is_70b or not plan.instance.family.startswith("trn1"):
        return
    if plan.request.max_num_seqs >= 4:
        yield Advice(
            level="warning",
            text="Llama-3.3-70B was reported not to compile on Trn1 at batch 4, while 1 and 2 "
            f"did; this plan decodes {plan.request.max_num_seqs}. Try `rufus-serve compile` "
            "first, and max_num_seqs 2 if it fails.",
            source="https://github.com/aws-neuron/aws-neuron-sdk/issues/1075",
        )
    yield Advice(
        level="note",
        text="NxD Inference 0.7 was reported not to compile the prefill of Llama-3.3-70B "
        "(NCC_INLA001); keep to 0.8.",
        source="https://github.com/vllm-project/vllm-neuron/issues/16",
    )


def _attention(plan: Plan) -> Iterator[Advice]:
    decode, request = plan.attention.decode, plan.request
    if plan.attention.has_two_copies:
        yield Advice(
            level="note",
            text=f"cp_degree {request.cp_degree} and attention_dp_degree "
            f"{request.attention_dp_degree} cut attention's weights differently in prefill and "
            f"decode: each core keeps both, {gib(plan.weights.prefill_attention)} more.",
        )
    if decode.kv_replication > 1:
        yield Advice(
            level="note",
            text=f"{plan.shape.num_kv_heads} KV heads over {decode.degree} cores: each is held "
            f"{decode.kv_replication:.0f} times, so the KV cache takes "
            f"{decode.kv_replication:.0f} times its size. {_hybrid(plan)}",
        )


def _hybrid(plan: Plan) -> str:
    """What attention groups of one node each would change."""
    request = plan.request
    if request.num_nodes == 1 or request.attention_dp_degree > 1:
        return "A larger neuron.attention_dp_degree lessens it."
    try:
        other = make_plan(request.with_attention_on_nodes())
    except ConfigError as error:
        return f"neuron.attention_dp_degree {request.num_nodes} would lessen it, but: {error}"
    return (
        f"With neuron.cp_degree and neuron.attention_dp_degree {request.num_nodes}, attention "
        f"stays on its node: {other.memory.max_sequences} sequences instead of "
        f"{plan.memory.max_sequences} fit, a token takes {_span(other.decode[-1])} ms instead of "
        f"{_span(plan.decode[-1])}."
    )


def _host_path(plan: Plan) -> Advice:
    """What a step brings to the host, which its estimate does not count."""
    rows = plan.request.max_num_seqs
    crossing = rows * plan.shape.vocab_size * 4
    low, high = (crossing / (speed * 1e6) for speed in _HOST_GB_PER_S)
    picking = rows * plan.shape.vocab_size * _PICK_MS
    return Advice(
        level="note",
        text=f"A step of {rows} rows brings {crossing / 1e6:.1f} MB of logits to the host, about "
        f"{low + picking:.1f} to {high + picking:.1f} ms with finding candidates in them, which "
        f"the times here leave out; neuron.device_candidates 256 brings {rows * 2} kB.",
    )


def _notes(plan: Plan) -> Iterator[Advice]:
    tp, request = plan.tp, plan.request
    yield from _attention(plan)
    yield _host_path(plan)
    if tp.q_padding > 1:
        yield Advice(
            level="note",
            text=f"{plan.shape.num_q_heads} query heads are padded to "
            f"{tp.q_heads_per_core * tp.degree}: {1 - 1 / tp.q_padding:.0%} of attention is idle.",
        )
    if request.max_num_seqs < plan.memory.max_sequences // 2:
        yield Advice(
            level="note",
            text=f"{plan.memory.max_sequences} sequences of {request.max_model_len} tokens would "
            f"fit, {request.max_num_seqs} are planned.",
        )
    if plan.shape.num_experts:
        yield Advice(
            level="note",
            text="No latency of a mixture of experts on Trainium was found to check this against.",
        )
    if plan.instance.family != "trn2":
        yield Advice(
            level="note",
            text="Neuron SDK 2.28 is the last one with kernels for Trn1 and Inf2; stay on it.",
            source="release-notes/components/nxd-inference.rst",
        )
