"""Sharding ahead of time, by NxD Inference itself; graphs need the compiler of a Neuron host."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nxdi_group import write_model
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
compiling.shard_node(config, int(sys.argv[3]), Path(sys.argv[2]), lambda *_: None)
"""
HEAD_SIZE, KV_HEADS = 16, 3


@pytest.fixture(scope="module")
def settings(model):
    return {
        "model": str(model), "runtime": "neuron", "nodes": NODES, "max_model_len": 128,
        "buckets": {"prefill": [128]}, "neuron": {"cores_per_node": CORES},
    }  # fmt: skip


@pytest.fixture(scope="module", params=range(NODES))
def node(request, settings, tmp_path_factory):
    """A node and its shards, cut in a process of their own: NxD keeps process-wide state."""
    out = tmp_path_factory.mktemp("artifacts")
    cut(settings, out, request.param)
    return request.param, out


def cut(settings, out, node_rank):
    command = [sys.executable, "-W", "ignore", "-c", _SHARD, json.dumps(settings), str(out)]
    command.append(str(node_rank))
    subprocess.run(command, check=True, capture_output=True, timeout=100)


def test_a_node_gets_the_files_that_are_expected_of_it(node, settings):
    rank, folder = node
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("weights/*"))
    assert found == compiling.shard_paths(ServeConfig(**settings), rank)


def test_each_rank_holds_its_share_of_the_checkpoint(node, settings, model):
    """Rows or columns by global rank; each KV head is held by two neighbours of six ranks."""
    node_rank, folder = node
    whole = load_file(Path(model) / "model.safetensors")
    paths = compiling.shard_paths(ServeConfig(**settings), node_rank)
    for rank, path in enumerate(paths, start=node_rank * CORES):
        shard = load_file(folder / path)
        assert shard["rank_util.rank"].tolist() == [rank]
        for layer in (0, 1):
            name = f"layers.{layer}"
            mlp = {each: whole[f"model.{name}.mlp.{each}_proj.weight"] for each in
                   ("gate", "up", "down")}  # fmt: skip
            expected = {
                "mlp.gate_proj.weight": share(mlp["gate"], rank, dim=0),
                "mlp.up_proj.weight": share(mlp["up"], rank, dim=0),
                "mlp.down_proj.weight": share(mlp["down"], rank, dim=1),
                "input_layernorm.weight": whole[f"model.{name}.input_layernorm.weight"],
            }
            for each in ("k_proj", "v_proj"):
                heads = whole[f"model.{name}.self_attn.{each}.weight"]
                head = rank * KV_HEADS // (NODES * CORES)
                expected[f"self_attn.qkv_proj.{each}.weight"] = heads.narrow(
                    0, head * HEAD_SIZE, HEAD_SIZE
                )
            for key, wanted in expected.items():
                found = shard[f"{name}.{key}"]
                assert found.equal(wanted.to(found.dtype)), (rank, name, key)


def test_a_draft_models_share_lies_beside_the_models(settings, model, tmp_path):
    draft = write_model(
        tmp_path / "draft", "Llama", heads=9, kv_heads=3, num_hidden_layers=1, intermediate_size=180
    )
    speculation = {"method": "fused", "draft_model": str(draft), "num_speculative_tokens": 3}
    fused = settings | {"speculation": speculation}
    cut(fused, tmp_path / "artifacts", 1)
    for rank, path in enumerate(compiling.shard_paths(ServeConfig(**fused), 1), start=CORES):
        shard = load_file(tmp_path / "artifacts" / path)
        for prefix, checkpoint in (("draft_model", draft), ("target_model", model)):
            whole = load_file(Path(checkpoint) / "model.safetensors")
            wanted = share(whole["model.layers.0.mlp.gate_proj.weight"], rank, dim=0)
            found = shard[f"{prefix}.layers.0.mlp.gate_proj.weight"]
            assert found.equal(wanted.to(found.dtype)), (rank, prefix)


def share(whole, rank, *, dim):
    width = whole.shape[dim] // (NODES * CORES)
    return whole.narrow(dim, rank * width, width)
