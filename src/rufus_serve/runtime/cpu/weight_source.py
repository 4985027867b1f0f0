"""Where a CPU follower reads its weights: from the checkpoint, or from a shard cut beforehand."""

from pathlib import Path
from typing import NamedTuple

from rufus_serve.artifacts.fetch import fetch
from rufus_serve.artifacts.identity import Identity, identify_model
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.protocol.runtime_info import ArtifactUse
from rufus_serve.runtime.base import Progress
from rufus_serve.shard.checkpoint import Checkpoint
from rufus_serve.shard.shard_file import SHARD_LAYOUT, ShardFile
from rufus_serve.shard.tensor_source import TensorSource


class Weights(NamedTuple):
    """Where to read them, and what of it was made ahead of time."""

    source: TensorSource
    artifacts: ArtifactUse = ArtifactUse()


def open_weights(config: ServeConfig, node_rank: int, progress: Progress) -> Weights:
    """The weights of `node_rank`; the caller closes their source.

    Raises:
        ArtifactError: artifacts are configured or required, and absent, damaged or others.
        ModelError: the checkpoint cannot be read.
    """
    artifacts = config.artifacts
    if artifacts.location:
        fetched = fetch(
            artifacts.location,
            shard_identity(config),
            node_rank=node_rank,
            cache=artifacts.cache,
            threads=artifacts.threads,
            progress=progress,
        )
        return Weights(ShardFile(fetched.folder / shard_path(node_rank)), fetched.use)
    if artifacts.required:
        raise ArtifactError(
            "artifacts.required forbids sharding at serve time, but artifacts.location is empty; "
            "run 'rufus-serve compile' and name its output"
        )
    return Weights(Checkpoint(Path(config.model)))


def shard_identity(config: ServeConfig) -> Identity:
    """What the shards of `config` depend on; its dtype is not among it, as they keep their own."""
    return Identity(
        model=identify_model(Path(config.model)),
        runtime="cpu",
        num_nodes=config.nodes,
        layout=SHARD_LAYOUT,
    )


def shard_path(node_rank: int) -> str:
    """The shard of `node_rank` in an artifact folder."""
    return f"shards/node-{node_rank:03d}.safetensors"
