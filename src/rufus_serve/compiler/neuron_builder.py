"""`NeuronBuilder`: the graphs, and the shards of every node's cores, by NxD Inference.

Written to the documented contract, never run on a device.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rufus_serve.artifacts.identity import Identity
from rufus_serve.compiler.builder import Need
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError, ConfigError
from rufus_serve.model.shape import read_model_shape
from rufus_serve.model.weight_files import weights_bytes
from rufus_serve.runtime.base import Progress

_GRAPHS_UNIT = "graphs and node 0"
_COMPILER_BYTES = 8 << 30
"""Host memory of the compiler, beside the weights; an assumption."""
_GRAPH_FILES_BYTES = 2 << 30
"""Disk for graphs; an assumption."""
_FLOAT32_BYTES = 4
_SHOWN_LINES = 15
_KILLED = (-9, 137)


class NeuronCompiling(Protocol):
    """What `runtime.neuron.compiling` offers; the SDK is behind it."""

    @property
    def GRAPHS(self) -> tuple[str, ...]:  # noqa: N802 - a constant of the module
        """Files that all nodes load."""

    def identity(self, config: ServeConfig) -> Identity:
        """What graphs and shards depend on."""

    def shard_paths(self, config: ServeConfig, node_rank: int) -> list[str]:
        """Files of one node's cores."""

    def compile_graphs(self, config: ServeConfig, folder: Path, progress: Progress) -> None:
        """Compile every graph, and cut the shards of node 0."""

    def shard_node(
        self, config: ServeConfig, node_rank: int, folder: Path, progress: Progress
    ) -> None:
        """Cut the shards of another node."""


class NeuronBuilder:
    """Implements `Builder` for runtime neuron: graphs with node 0, then the other nodes."""

    def __init__(self, config: ServeConfig, compiling: NeuronCompiling | None = None) -> None:
        if config.neuron.mode != "device":
            raise ConfigError(
                f"neuron.mode {config.neuron.mode} compiles nothing; set neuron.mode to device"
            )
        if compiling is None:
            from rufus_serve.runtime.neuron import compiling as real

            compiling = real
        self._config = config
        self._compiling = compiling
        self._rank_of = {f"node {rank}": rank for rank in range(1, config.nodes)}

    def identity(self) -> Identity:
        """Model, everything compiled in, and the SDK's versions."""
        return self._compiling.identity(self._config)

    def need(self) -> Need:
        """Memory as NxD Inference 0.8 takes it: the checkpoint, and one node's shards at once."""
        checkpoint = weights_bytes(Path(self._config.model))
        node, reason = checkpoint // self._config.nodes, "the checkpoint"
        in_memory = checkpoint
        if self._config.weights == "int8":
            reason = "the checkpoint in float32, which quantizing takes"
            in_memory = _FLOAT32_BYTES * read_model_shape(Path(self._config.model)).num_params
        return Need(
            memory=in_memory + node + _COMPILER_BYTES,
            disk=checkpoint + _GRAPH_FILES_BYTES,
            reason=f"{reason}, one node's shards of it, and the compiler",
        )

    def units(self) -> Sequence[str]:
        """Graphs first: they are what fails."""
        return [_GRAPHS_UNIT, *self._rank_of]

    def build(self, unit: str, folder: Path, progress: Progress) -> Mapping[str, Sequence[int]]:
        """Compile, or shard for one node."""
        files: dict[str, Sequence[int]] = {}
        rank = self._rank_of.get(unit, 0)
        if unit == _GRAPHS_UNIT:
            with _told(unit):
                self._compiling.compile_graphs(self._config, folder, progress)
            files = dict.fromkeys(self._compiling.GRAPHS, ())
        else:
            with _told(unit):
                self._compiling.shard_node(self._config, rank, folder, progress)
        files |= dict.fromkeys(self._compiling.shard_paths(self._config, rank), (rank,))
        missing = [path for path in files if not (folder / path).is_file()]
        if missing:
            raise ArtifactError(
                f"NxD Inference ended without an error but wrote no {', '.join(missing[:4])} "
                f"in {folder}"
            )
        return files


@contextmanager
def _told(unit: str) -> Iterator[None]:
    """Turn a failure of the compiler's processes into an ArtifactError with its words."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, AssertionError, subprocess.SubprocessError) as error:
        raise ArtifactError(
            f"NxD Inference could not make {unit}: {failure_text(error)}"
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
    return "\n".join(text.splitlines()[-_SHOWN_LINES:])
