"""Refusals at start-up: what NxD Inference 0.8 would shard, read or answer wrongly."""

from rufus_serve.errors import ModelError
from rufus_serve.model.shape import ModelShape
from rufus_serve.runtime.neuron.topology import Topology

_EXACT_IDS = 1 << 24


def check_sharding(shape: ModelShape, topology: Topology) -> None:
    """Raise ModelError unless NxD Inference can cut this model into `tp_degree` shards."""
    tp, kv_heads = topology.tp_degree, shape.num_kv_heads
    product = (
        f"tensor parallel degree {tp} (nodes {topology.num_nodes} x cores_per_node "
        f"{topology.cores_per_node})"
    )
    if tp % kv_heads and kv_heads % tp:
        raise ModelError(
            f"{product} % {kv_heads} KV heads = {tp % kv_heads} and {kv_heads} % {tp} = "
            f"{kv_heads % tp}: one must be 0, since NxD Inference either replicates KV heads or "
            f"divides them; possible degrees near: {_near(tp, kv_heads)}"
        )
    sizes = {
        "intermediate_size": shape.intermediate_size, "moe_intermediate_size": shape.expert_size
    }  # fmt: skip
    for name, size in sizes.items():
        if size % tp:
            raise ModelError(
                f"{name} {size} % {product} = {size % tp}, must be 0; choose another number of "
                "nodes or cores_per_node"
            )


def check_attention_groups(
    shape: ModelShape, topology: Topology, *, cp_degree: int, dp_degree: int
) -> None:
    """Raise ModelError unless attention can be cut within its smaller groups.

    With context or data parallelism, a group of tp_degree / degree ranks shares the heads.
    """
    tp, kv_heads = topology.tp_degree, shape.num_kv_heads
    for name, degree in (("cp_degree", cp_degree), ("attention_dp_degree", dp_degree)):
        group = tp // degree
        if degree > 1 and group % kv_heads and kv_heads % group:
            raise ModelError(
                f"neuron.{name} {degree}: attention groups of {tp} / {degree} = {group} ranks; "
                f"{group} % {kv_heads} KV heads = {group % kv_heads} and {kv_heads} % {group} = "
                f"{kv_heads % group}: one must be 0"
            )
    whole, group = max(kv_heads // tp, 1), max(kv_heads // (tp // dp_degree), 1)
    if cp_degree == 1 and whole != group:
        raise ModelError(
            f"neuron.attention_dp_degree {dp_degree} without context parallelism: a rank holds "
            f"{kv_heads} KV heads / {tp} = {whole} in prefill but {kv_heads} / "
            f"({tp} / {dp_degree}) = {group} in decode, which must be equal; set neuron.cp_degree "
            "to a multiple of attention_dp_degree"
        )


def check_quantizing(shape: ModelShape) -> None:
    """Raise ModelError unless NxD Inference can make weights of 8 bits of this checkpoint."""
    if shape.quantization:
        raise ModelError(
            f"weights int8 of a checkpoint that is quantized already ({shape.quantization}); name "
            "an unquantized one, or set weights to auto"
        )
    if shape.num_experts:
        raise ModelError(
            f"weights int8 with {shape.num_experts} experts: NxD Inference 0.8 fuses experts "
            "into layers that its quantized checkpoints do not name; set weights to auto"
        )


def check_candidates(shape: ModelShape, count: int) -> None:
    """Raise ModelError unless a row has so many tokens, and ids that float32 holds."""
    if count > shape.vocab_size or (count and shape.vocab_size > _EXACT_IDS):
        raise ModelError(
            f"neuron.device_candidates {count} of a vocabulary of {shape.vocab_size}: it must be "
            f"at most that, and the vocabulary at most {_EXACT_IDS}, as ids come in float32"
        )


def _near(tp: int, kv_heads: int) -> str:
    """The possible degrees on either side of `tp`."""
    possible = [n for n in range(1, tp + kv_heads + 1) if n % kv_heads == 0 or kv_heads % n == 0]
    below = [n for n in possible if n < tp][-1:]
    above = [n for n in possible if n > tp][:1]
    return " and ".join(str(n) for n in below + above)
