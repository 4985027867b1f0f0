"""Weights of 8 bits: quantized, sharded and dequantized by NxD Inference itself."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from nxdi_group import Failed, Group, Reference, write_llama
from nxdi_schedules import check_schedules
from safetensors.torch import load_file, save_file
from test_nxdi_runtime import LAYOUTS
from tests.contract import step_sequences

from rufus_serve.config.schema import ServeConfig
from rufus_serve.kernels.int8 import peaks_of, quantize
from rufus_serve.runtime.neuron import compiling

pytestmark = pytest.mark.timeout(300)

INT8 = {"weights": "int8", "dtype": "float32"}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_SHARD = """
import json, sys
from pathlib import Path
from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.neuron import compiling
compiling.shard_node(ServeConfig(**json.loads(sys.argv[1])), 0, Path(sys.argv[2]), lambda *_: None)
"""


def is_quantized(name):
    return name.split(".")[-2] in LAYERS


@pytest.fixture(scope="module")
def dequantized(tmp_path_factory):
    """transformers' answers for what 8 bits of the model stand for."""
    import torch

    folder = write_llama(tmp_path_factory.mktemp("dequantized"))
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in filter(is_quantized, weights):
        step = weights[name].abs().amax(dim=1, keepdim=True) / 127
        weights[name] = torch.round(weights[name] * (1 / step)) * step
    save_file(weights, file, {"format": "pt"})
    return Reference(folder)


def settings(model, ranks, layout="contiguous"):
    own = {"model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4}
    return LAYOUTS[layout] | INT8 | own


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("layout", step_sequences.LAYOUTS)
def test_logits_are_those_of_the_dequantized_model(model, dequantized, start_group, layout, ranks):
    group = start_group(settings(model, ranks, layout))
    check_schedules(group, dequantized, layout)
    group.close()


def float_layers(_):
    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode.converted_layers = lambda _: nullcontext()


def test_float_layers_would_take_8_bits_for_weights(model, dequantized):
    group = Group(settings(model, 1), unguarded=float_layers)
    with pytest.raises((AssertionError, Failed)):
        check_schedules(group.start(), dequantized, "contiguous")
    group.close()


@pytest.fixture(scope="module")
def cut(model, tmp_path_factory):
    """Settings of three cores, and what cutting their shards leaves in a folder."""
    out = tmp_path_factory.mktemp("artifacts")
    wanted = {
        "model": str(model), "runtime": "neuron", "max_model_len": 128, "weights": "int8",
        "dtype": "float32", "buckets": {"prefill": [128]}, "neuron": {"cores_per_node": 3},
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", _SHARD, json.dumps(wanted), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return ServeConfig(**wanted), out


def test_the_quantized_checkpoint_is_ours_to_the_last_bit(cut, model):
    _, folder = cut
    whole = load_file(Path(model) / "model.safetensors")
    made = load_file(folder / "quantized" / "model.safetensors")
    for name in filter(is_quantized, whole):
        ours = quantize(whole[name], peaks_of(whole[name]))
        theirs = made[name.removeprefix("model.")]
        assert theirs.equal(ours.values), name
        scales = made[name.removeprefix("model.").replace("weight", "scale")]
        assert scales.flatten().equal(ours.scales), name
    assert made["lm_head.weight"].dtype == whole["lm_head.weight"].dtype


def test_each_rank_holds_8_bits_and_the_scales_of_its_outputs(cut):
    config, folder = cut
    made = load_file(folder / "quantized" / "model.safetensors")
    for rank, path in enumerate(compiling.shard_paths(config, 0)):
        shard = load_file(folder / path)
        up, down = (f"layers.1.mlp.{name}_proj" for name in ("up", "down"))
        rows = made[f"{up}.weight"].shape[0] // 3
        own = slice(rank * rows, (rank + 1) * rows)
        assert shard[f"{up}.weight"].equal(made[f"{up}.weight"][own])
        assert shard[f"{up}.scale"].equal(made[f"{up}.scale"][own])
        assert shard[f"{down}.weight"].equal(made[f"{down}.weight"][:, own])
        assert shard[f"{down}.scale"].equal(made[f"{down}.scale"])


def test_artifacts_are_told_apart_by_their_weights(model):
    wide, narrow = (
        ServeConfig(
            model=str(model),
            runtime="neuron",
            weights=weights,
            max_model_len=512,
            neuron={"cores_per_node": 3},
        )
        for weights in ("auto", "int8")
    )
    assert compiling.identity(wide).key != compiling.identity(narrow).key
    assert compiling.identity(narrow).settings["quantization_type"] == "per_channel_symmetric"
