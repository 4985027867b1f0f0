"""`TensorParallel`: how NxD Inference divides a model's heads and columns over the cores.

KV heads are replicated up to the tensor parallel degree when there are more cores than heads,
and query heads are padded to a multiple of it.
"""

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.plan.model_shape import ModelShape


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
    kv_heads = shape.num_kv_heads
    return degree % kv_heads == 0 or kv_heads % degree == 0


def tensor_parallel(shape: ModelShape, degree: int, *, num_nodes: int = 1) -> TensorParallel:
    """The shares of one of `degree` cores, spread over `num_nodes`.

    Raises:
        ConfigError: the heads cannot be divided so; the message holds the equation.
    """
    kv_heads = shape.num_kv_heads
    if not divides(shape, degree):
        raise ConfigError(
            f"tensor parallel degree {degree} cannot share {kv_heads} KV heads: tp % kv_heads or "
            f"kv_heads % tp must be 0, but {degree} % {kv_heads} = {degree % kv_heads} and "
            f"{kv_heads} % {degree} = {kv_heads % degree}; {_hint(shape, degree, num_nodes)}"
        )
    return padded_shares(shape, degree)


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


def _hint(shape: ModelShape, degree: int, num_nodes: int) -> str:
    """The most cores per node, below what was asked, that do divide."""
    for cores in range(degree // num_nodes - 1, 0, -1):
        if divides(shape, cores * num_nodes):
            return f"use --cores-per-node {cores}"
    return f"no number of cores on {num_nodes} nodes works"
