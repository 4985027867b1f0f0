"""The whole NeuronConfig of each shipped configuration, as NxD Inference itself completes it.

Compared with files in `golden`, so that no default of either side changes unseen. Write them anew
with GOLDEN=write.
"""

import json
import os
from pathlib import Path

import pytest
import yaml

from rufus_serve.config import resolve
from rufus_serve.config.schema import ServeConfig
from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B, LLAMA31_405B
from rufus_serve.plan.request import PlanRequest
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.topology import Topology

# NxD Inference's own, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore")

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {
    "llama-3.1-8b": LLAMA3_8B, "llama-3.1-70b": LLAMA3_70B, "llama-3.1-405b": LLAMA31_405B,
}  # fmt: skip
FILES = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if yaml.safe_load(path.read_text()).get("runtime") == "neuron"
]


def write_config_json(folder, shape):
    """What Hugging Face would say of `shape`."""
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16",
        "num_hidden_layers": shape.num_layers, "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_q_heads, "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size, "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def completed(config: ServeConfig, work: Path, *, node_rank: int = 0) -> dict:
    """The NeuronConfig that NxD Inference makes of `config`, without this machine's paths."""
    model = NeuronModel.of(config, Topology.of(config, node_rank, 1))
    application = model.build(work)
    found = json.loads(application.config.to_json_string())["neuron_config"]
    if found["quantized_checkpoints_path"]:
        found["quantized_checkpoints_path"] = "PATH"
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_configuration_is_completed_as_it_was(file, tmp_path):
    config = resolve(file=file, environ={}, flags={}).config
    folder = write_config_json(tmp_path / "model", SHAPES[config.served_model_name])
    found = completed(config.model_copy(update={"model": str(folder)}), tmp_path)
    golden = GOLDEN / f"{file.stem}.json"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(golden.read_text())


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_what_plan_prints_is_compiled_as_it_was_planned(weights, tmp_path):
    request = PlanRequest(
        shape=LLAMA3_70B, instance=instance_named("trn1.32xlarge"), num_nodes=2, cores_per_node=32,
        max_model_len=8192, max_num_seqs=2, weights=weights,
    )  # fmt: skip
    folder = write_config_json(tmp_path / "model", LLAMA3_70B)
    found = completed(ServeConfig(model=str(folder), **request.settings), tmp_path, node_rank=1)
    is_int8 = weights == "int8"
    assert (found["tp_degree"], found["start_rank_id"], found["batch_size"]) == (64, 32, 2)
    assert found["context_encoding_buckets"] == list(request.compiled.prefill)
    assert found["token_generation_buckets"] == list(request.compiled.context)
    assert found["torch_dtype"] == "bfloat16"
    assert found["quantized"] is is_int8
    if is_int8:
        scheme = (found["quantization_type"], found["quantization_dtype"])
        assert scheme == ("per_channel_symmetric", "int8")
        assert found["modules_to_not_convert"] == ["lm_head"]
