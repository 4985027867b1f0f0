"""Compiling ahead of time: graphs once, then each node's shards of the weights.

Written to the documented contract, never run on a device; `shard_node` alone runs against real
NxD Inference on CPU. What is compiled in follows from the configuration without the SDK, so
that artifacts can be compared wherever the package versions are the same.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rufus_serve.artifacts.identity import Identity, identify_model
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.runtime.base import Progress
from rufus_serve.runtime.neuron.application import (
    application_class,
    build_application,
    number_format,
)
from rufus_serve.runtime.neuron.checkpoint import Checkpoint, config_overlay, write_overlay
from rufus_serve.runtime.neuron.checks import check_sharding
from rufus_serve.runtime.neuron.compiled_shape import CompiledShape
from rufus_serve.runtime.neuron.environment import device_environment
from rufus_serve.runtime.neuron.host import apply_environment
from rufus_serve.runtime.neuron.neuron_config import neuron_config_fields
from rufus_serve.runtime.neuron.topology import Topology

LAYOUT = 1
"""Version of the artifact folder's own layout."""
GRAPHS: tuple[str, ...] = ("model.pt", "neuron_config.json")
WORK = "compiler-work"
"""Folder of the compiler's intermediate files, beside its results while they are made."""

_PACKAGES = (
    "neuronx-cc", "neuronx-distributed", "neuronx-distributed-inference", "torch-neuronx",
)  # fmt: skip
_PER_NODE = "start_rank_id"
_SHOWN_LINES = 15
_KILLED = (-9, 137)


def identity(config: ServeConfig) -> Identity:
    """What graphs and shards of `config` depend on."""
    fields = _fields(config, Checkpoint.read(config.model), node_rank=0)
    return Identity(
        model=identify_model(Path(config.model)),
        runtime="neuron",
        num_nodes=config.nodes,
        layout=LAYOUT,
        settings={name: value for name, value in fields.items() if name != _PER_NODE},
        versions=_versions(),
    )


def shard_paths(config: ServeConfig, node_rank: int) -> list[str]:
    """The shards of the cores of `node_rank`, as NxD Inference names them."""
    topology = Topology.of(config, node_rank, 1)
    first = topology.start_rank_id
    ranks = range(first, first + topology.cores_per_node)
    return [f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in ranks]


def compile_graphs(config: ServeConfig, folder: Path, progress: Progress) -> None:
    """Compile every graph into `folder`, and cut the shards of node 0.

    Raises:
        ArtifactError: the compiler failed; the end of its own message is told.
    """
    work = folder / WORK
    topology = Topology.of(config, 0, 1)
    step_floor_s = config.timeouts.step_floor_s
    apply_environment(device_environment(topology, compile_dir=work, step_floor_s=step_floor_s))
    progress(0, 1, "graphs; this takes minutes")
    with _compiler_errors("compile the graphs", work):
        _application(config, 0, work).compile(f"{folder}/")
    progress(1, 1, "graphs")


def shard_node(config: ServeConfig, node_rank: int, folder: Path, progress: Progress) -> None:
    """Cut the shards of one node's cores into `folder`.

    Raises:
        ArtifactError: NxD Inference failed.
    """
    work = folder / WORK
    progress(0, 1, f"shards of node {node_rank}")
    with _compiler_errors(f"shard the weights of node {node_rank}", work):
        _application(config, node_rank, work).shard_weights(f"{folder}/")
    progress(1, 1, f"shards of node {node_rank}")


def _application(config: ServeConfig, node_rank: int, work: Path) -> Any:
    checkpoint = Checkpoint.read(config.model)
    check_sharding(checkpoint, Topology.of(config, node_rank, 1))
    shape = _shape(config, checkpoint)
    overlay = config_overlay(checkpoint, shape.max_model_len)
    folder = write_overlay(checkpoint, overlay, work / "checkpoint")
    fields = _fields(config, checkpoint, node_rank=node_rank)
    return build_application(application_class(checkpoint.architecture), folder, fields)


def _fields(config: ServeConfig, checkpoint: Checkpoint, *, node_rank: int) -> dict[str, Any]:
    topology = Topology.of(config, node_rank, 1)
    dtype = number_format(config, checkpoint.dtype)
    return neuron_config_fields(config, _shape(config, checkpoint), topology, dtype)


def _shape(config: ServeConfig, checkpoint: Checkpoint) -> CompiledShape:
    return CompiledShape.of(config, int(checkpoint.raw["max_position_embeddings"]))


def _versions() -> dict[str, str]:
    """Versions of the SDK's packages that are installed here."""
    found = ((package, _version(package)) for package in _PACKAGES)
    return {package: number for package, number in found if number}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@contextmanager
def _compiler_errors(what: str, work: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError, AssertionError, subprocess.SubprocessError) as error:
        raise ArtifactError(
            f"NxD Inference could not {what}: {failure_text(error)}\n"
            f"The compiler's files are in {work}"
        ) from error


def failure_text(error: BaseException) -> str:
    """The compiler's own words: the end of what it printed, or the error's message."""
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        printed = error.stderr or error.output or b""
        text = printed if isinstance(printed, str) else printed.decode(errors="replace")
        text = f"{text.rstrip()}\n{error.cmd!r} ended with {error.returncode}".lstrip()
        if error.returncode in _KILLED:
            text += ", killed: most likely this host has too little memory"
    return os.linesep.join(text.splitlines()[-_SHOWN_LINES:])
