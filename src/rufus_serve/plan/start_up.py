"""How long compiling, sharding and loading take, in the classes that published runs support."""

from collections.abc import Sequence

import msgspec

from rufus_serve.plan.hardware import Instance
from rufus_serve.units import GIB

_SHARDING_BYTES_PER_S = 812e9 / 1857
"""Llama-3.1-405B in bfloat16 was sharded once in 1,857 s on Trn2 (NxD Inference tutorial)."""
_LOADING_BYTES_PER_S = 812e9 / 108
"""The same shards were then loaded in about 108 s, from local disks."""
_COMPILER_BYTES = 8 * GIB
"""Host memory kept for the compiler; an assumption."""
_PROCESS_S = 30.0
"""A follower's interpreter, imports and Neuron runtime, and the group's bootstrap; assumed."""
_USABLE_HOST_SHARE = 0.9
"""The rest is the operating system's; an assumption."""


class StartUp(msgspec.Struct, frozen=True, kw_only=True):
    """Times before the first request, and the host memory that preparing takes."""

    num_graphs: int
    compile_class: str
    shard_once_s: float
    load_sharded_s: float
    load_unsharded_class: str
    warm_up_s: float
    """Every graph once."""
    compile_host_bytes: int
    """Checkpoint, one node's shards and the compiler, at once in host memory."""
    host_bytes: int

    @property
    def recover_s(self) -> float:
        """From the notice of a loss until steps go on: every process starts, loads, warms up."""
        return _PROCESS_S + self.load_sharded_s + self.warm_up_s

    @property
    def compiles_on_node(self) -> bool:
        """Whether a serving node has the host memory to compile and shard."""
        return self.compile_host_bytes <= self.host_bytes * _USABLE_HOST_SHARE


def start_up(
    instance: Instance,
    *,
    checkpoint_bytes: int,
    read_bytes: int,
    shard_bytes: int,
    num_nodes: int,
    graphs_ms: Sequence[float],
) -> StartUp:
    """For a checkpoint of which each core gets `shard_bytes`, and graphs that take `graphs_ms`.

    `read_bytes` is what the checkpoint takes in host memory while it is sharded or quantized.
    """
    node_bytes = shard_bytes * instance.num_cores
    return StartUp(
        num_graphs=len(graphs_ms),
        warm_up_s=sum(graphs_ms) / 1e3,
        compile_class=_compile_class(checkpoint_bytes),
        shard_once_s=node_bytes * num_nodes / _SHARDING_BYTES_PER_S,
        load_sharded_s=node_bytes / _LOADING_BYTES_PER_S,
        load_unsharded_class="10 to 20 minutes" if checkpoint_bytes > 30e9 else "minutes",
        compile_host_bytes=read_bytes + node_bytes + _COMPILER_BYTES,
        host_bytes=instance.host_gib * GIB,
    )


def _compile_class(checkpoint_bytes: int) -> str:
    # 15 GB took about 15 minutes with the buckets of AWS's vLLM plug-in; 405B on four nodes
    # about 20 minutes with few buckets, loading included.
    if checkpoint_bytes < 5e9:
        return "minutes"
    if checkpoint_bytes < 30e9:
        return "about 15 minutes"
    return "20 minutes or more"
