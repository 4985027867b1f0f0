"""Sharding ahead of time, by NxD Inference itself; graphs need the compiler of a Neuron host."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.neuron import compiling

NODES, CORES = 2, 3

_SHARD = """
import json, sys
from pathlib import Path
from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.neuron import compiling
config = ServeConfig(**json.loads(sys.argv[1]))
compiling.shard_node(config, 1, Path(sys.argv[2]), lambda *_: None)
"""


@pytest.fixture(scope="module")
def settings(model):
    return {
        "model": str(model), "runtime": "neuron", "nodes": NODES, "max_model_len": 128,
        "buckets": {"prefill": [128]}, "neuron": {"cores_per_node": CORES},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory) -> Path:
    """Shards of node 1, cut in a process of their own: NxD Inference keeps process-wide state."""
    out = tmp_path_factory.mktemp("artifacts")
    command = [sys.executable, "-W", "ignore", "-c", _SHARD, json.dumps(settings), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return out


def test_a_node_gets_the_files_that_are_expected_of_it(folder, settings):
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("weights/*"))
    assert found == compiling.shard_paths(ServeConfig(**settings), 1)


def test_a_shard_holds_its_columns_of_the_checkpoint(folder, settings, model):
    whole = load_file(Path(model) / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    width = whole.shape[1] // (NODES * CORES)
    for rank, path in enumerate(compiling.shard_paths(ServeConfig(**settings), 1), start=CORES):
        shard = load_file(folder / path)["layers.0.mlp.down_proj.weight"]
        wanted = whole[:, rank * width : (rank + 1) * width].to(shard.dtype)
        assert shard.equal(wanted)
