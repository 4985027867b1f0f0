"""What `rufus-serve compile` asks of NxD Inference: graphs once, then shards node by node.

Sharding runs against real NxD Inference on CPU, tested; compiling is written to the documented
contract and was never run.
"""

import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rufus_serve.artifacts.compiled_folder import CONFIG, GRAPH
from rufus_serve.artifacts.identity import Identity, identify_model
from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.base import Progress
from rufus_serve.runtime.neuron.environment import device_environment
from rufus_serve.runtime.neuron.host import apply_environment
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.quantizing import quantize_checkpoint
from rufus_serve.runtime.neuron.topology import Topology

GRAPHS = (GRAPH, CONFIG)
"""Files that all nodes load."""

_LAYOUT = 1
_QUANTIZED = "quantized"
"""Folder of the quantized checkpoint while all nodes' shards are cut of it."""
_PACKAGES = ("neuronx-cc", "neuronx-distributed", "neuronx-distributed-inference", "torch-neuronx")
_PER_NODE = {"start_rank_id"}


def identity(config: ServeConfig) -> Identity:
    """What graphs and shards of `config` depend on; needs no SDK."""
    return model_identity(NeuronModel.of(config, Topology.of(config, 0, 1)))


def model_identity(model: NeuronModel) -> Identity:
    """The same on every node, and where the SDK is not installed but for its versions."""
    fields = {name: value for name, value in model.fields.items() if name not in _PER_NODE}
    return Identity(
        model=identify_model(model.config.folder),
        runtime="neuron",
        num_nodes=model.topology.num_nodes,
        layout=_LAYOUT,
        settings=fields,
        versions=_versions(),
        draft=identify_model(model.draft.config.folder) if model.draft else None,
    )


def shard_paths(config: ServeConfig, node_rank: int) -> list[str]:
    """Files of one node's ranks; none if NxD Inference is told to shard at each load."""
    return shards_of(NeuronModel.of(config, Topology.of(config, node_rank, 1)))


def shards_of(model: NeuronModel) -> list[str]:
    """Files of `model`'s ranks in the folder compiled to; none if it is told to make none."""
    if not model.fields["save_sharded_checkpoint"]:
        return []
    first = model.topology.start_rank_id
    ranks = range(first, first + model.topology.cores_per_node)
    return [f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in ranks]


def compile_graphs(config: ServeConfig, folder: Path, progress: Progress) -> None:
    """Compile every graph, and cut the shards of node 0. Errors are the compiler's own."""
    progress(0, 1, "compiling graphs")
    _with_application(config, 0, folder, "compile")
    progress(1, 1, "graphs compiled")


def shard_node(config: ServeConfig, node_rank: int, folder: Path, progress: Progress) -> None:
    """Cut the shards of another node."""
    progress(0, 1, f"sharding for node {node_rank}")
    _with_application(config, node_rank, folder, "shard_weights")
    progress(1, 1, f"sharded for node {node_rank}")


def _with_application(config: ServeConfig, node_rank: int, folder: Path, method: str) -> None:
    model = NeuronModel.of(config, Topology.of(config, node_rank, 1))
    with tempfile.TemporaryDirectory(prefix="rufus-neuron-") as name:
        work = Path(name)
        apply_environment(device_environment(config, model.topology, work))
        application = model.build(work, quantized=folder / _QUANTIZED)
        quantize_checkpoint(application)
        getattr(application, method)(f"{folder}/")


def _versions() -> dict[str, str]:
    """The installed packages that make graphs."""
    found = {package: _version(package) for package in _PACKAGES}
    return {package: number for package, number in found.items() if number}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
