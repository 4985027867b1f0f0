"""`TensorParallel`: how NxD Inference divides a model's heads and columns over the cores.

KV heads are replicated up to the tensor parallel degree when there are more cores than heads,
and query heads are padded to a multiple of it.
"""

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.model.shape import ModelShape


class TensorParallel(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of one core."""

    degree: int
    q_heads_per_core: int
    kv_heads_per_core: int
    kv_replication: float
    """Copies of each KV head, all cores together."""
    q_padding: float
    """Query heads computed per query head of the model; 1 without padding."""


def divides(shape: ModelShape, degree: int) -> bool:
    """Whether NxD Inference can shard `shape` over `degree` cores."""
    return not _obstacle(shape, degree)


def tensor_parallel(shape: ModelShape, degree: int, *, num_nodes: int = 1) -> TensorParallel:
    """The shares of one of `degree` cores, spread over `num_nodes`.

    Raises:
        ConfigError: the heads cannot be divided so; the message holds the equation.
    """
    obstacle = _obstacle(shape, degree)
    if obstacle:
        raise ConfigError(
            f"tensor parallel degree {degree} {obstacle}; {_hint(shape, degree, num_nodes)}"
        )
    return padded_shares(shape, degree)


class AttentionShares(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of attention, which context and data parallelism divide over fewer cores each."""

    prefill: TensorParallel
    decode: TensorParallel

    @property
    def has_two_copies(self) -> bool:
        """Whether prefill and decode cut the weights differently, so that both are kept."""
        return self.prefill.degree != self.decode.degree


def attention_shares(
    shape: ModelShape, degree: int, *, context_parallel: int, data_parallel: int
) -> AttentionShares:
    """Attention over groups of `degree` / `context_parallel` and / `data_parallel` cores.

    Raises:
        ConfigError: the heads cannot be divided so; the message holds the equation.
    """
    return AttentionShares(
        prefill=tensor_parallel(shape, degree // context_parallel),
        decode=tensor_parallel(shape, degree // data_parallel),
    )


def padded_shares(shape: ModelShape, degree: int) -> TensorParallel:
    """The shares of one core in any software that pads heads; not all of them NxD Inference's."""
    q_heads = -(-shape.num_q_heads // degree)
    kv_heads = -(-shape.num_kv_heads // degree)
    return TensorParallel(
        degree=degree,
        q_heads_per_core=q_heads,
        kv_heads_per_core=kv_heads,
        kv_replication=kv_heads * degree / shape.num_kv_heads,
        q_padding=q_heads * degree / shape.num_q_heads,
    )


def _obstacle(shape: ModelShape, degree: int) -> str:
    """Why `degree` cannot be, with the equation; empty if it can."""
    kv_heads = shape.num_kv_heads
    if degree % kv_heads and kv_heads % degree:
        return (
            f"cannot share {kv_heads} KV heads: tp % kv_heads or kv_heads % tp must be 0, but "
            f"{degree} % {kv_heads} = {degree % kv_heads} and "
            f"{kv_heads} % {degree} = {kv_heads % degree}"
        )
    columns = {"intermediate_size": shape.intermediate_size * (shape.num_dense_layers > 0)}
    columns["moe_intermediate_size"] = shape.expert_size
    for name, size in columns.items():
        if size % degree:
            return f"must divide {name}, but {size} % {degree} = {size % degree}"
    return ""


def _hint(shape: ModelShape, degree: int, num_nodes: int) -> str:
    """The most cores per node, below what was asked, that do divide."""
    for cores in range(degree // num_nodes - 1, 0, -1):
        if divides(shape, cores * num_nodes):
            return f"use --cores-per-node {cores}"
    return f"no number of cores on {num_nodes} nodes works"
