"""`CpuBuilder`: one shard of the checkpoint per follower."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rufus_serve.artifacts.identity import Identity
from rufus_serve.compiler.builder import Need
from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.base import Progress
from rufus_serve.runtime.cpu.weight_source import shard_identity, shard_path
from rufus_serve.shard.checkpoint import Checkpoint
from rufus_serve.shard.model_config import read_model_config
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.shard_file import Slice, shard_bytes, slices_of, write_shard

_MEMORY_BYTES = 1 << 30
"""Python and torch; weights pass through one slice at a time."""


class CpuBuilder:
    """Implements `Builder` for runtime cpu. One unit per follower."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._folder = Path(config.model)
        self._model = read_model_config(self._folder)
        self._rank_of = {f"node {rank}": rank for rank in range(config.nodes)}

    def identity(self) -> Identity:
        """Model and number of nodes."""
        return shard_identity(self._config)

    def need(self) -> Need:
        """The largest slice in memory, all shards on disk."""
        checkpoint = Checkpoint(self._folder)
        try:
            shards = [self._slices(rank, checkpoint) for rank in self._rank_of.values()]
            disk = sum(shard_bytes(slices, checkpoint) for slices in shards)
            largest = max(shard_bytes([one], checkpoint) for slices in shards for one in slices)
        finally:
            checkpoint.close()
        return Need(
            memory=_MEMORY_BYTES + 2 * largest,
            disk=disk,
            reason=f"{len(shards)} shards, written one slice at a time",
        )

    def units(self) -> Sequence[str]:
        """One per follower."""
        return list(self._rank_of)

    def build(self, unit: str, folder: Path, progress: Progress) -> Mapping[str, Sequence[int]]:
        """Write one follower's shard."""
        rank = self._rank_of[unit]
        path = shard_path(rank)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint(self._folder)
        try:
            slices = self._slices(rank, checkpoint)
            write_shard(folder / path, checkpoint, slices, progress=progress)
        finally:
            checkpoint.close()
        return {path: [rank]}

    def _slices(self, rank: int, checkpoint: Checkpoint) -> list[Slice]:
        partition = Partition.of(self._model, num_nodes=self._config.nodes, node_rank=rank)
        return slices_of(self._model, partition, checkpoint)
