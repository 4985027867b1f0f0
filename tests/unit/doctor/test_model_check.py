import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_hosts import cpu_context
from safetensors.numpy import save_file

from rufus_serve.doctor.context import HostPart
from rufus_serve.doctor.finding import Finding
from rufus_serve.doctor.model import model

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((4, 4), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, tmp_path / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def judge(folder: Path, **placement: Any) -> Finding:
    (found,) = model(cpu_context(model=str(folder), placement=HostPart(**placement)))
    return found


def refused(folder: Path) -> str:
    found = judge(folder)
    assert (found.level, found.exit_code) == ("error", 3)
    return found.what


def test_a_whole_checkpoint_is_good(checkpoint: Path):
    found = judge(checkpoint)
    assert (found.level, "all readable" in found.what) == ("ok", True)


def test_an_absent_folder_is_told_as_serve_tells_it(tmp_path: Path):
    assert refused(tmp_path / "absent").endswith(
        "absent: no such folder; give `model` a Hugging Face checkpoint folder"
    )


def test_a_damaged_config_is_told(checkpoint: Path):
    (checkpoint / "config.json").write_text("{")
    assert "not valid JSON" in refused(checkpoint)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not known"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq' are not supported"),
        (
            {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
            "'mixtral' needs runtime neuron",
        ),
    ],
)
def test_models_that_are_not_served_are_refused(
    checkpoint: Path, fields: dict[str, Any], said: str
):
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | fields))
    assert said in refused(checkpoint)


def test_a_missing_weight_file_is_named(checkpoint: Path):
    (checkpoint / "model-2.safetensors").unlink()
    assert "model-2.safetensors: missing" in refused(checkpoint)


def test_no_weights_at_all_are_told(checkpoint: Path):
    (checkpoint / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor" in refused(checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_cut_weight_file_is_damaged(checkpoint: Path, keep: int):
    path = checkpoint / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model-1.safetensors: damaged" in refused(checkpoint)


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"data_offsets": [0]}}', b"\xff"])
def test_a_header_that_is_none_is_damage_and_no_crash(checkpoint: Path, header: bytes):
    path = checkpoint / "model-1.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "model-1.safetensors: damaged" in refused(checkpoint)


def test_a_tensor_that_the_index_promises_must_be_there(checkpoint: Path):
    index = {"weight_map": {"a": "model-1.safetensors", "c": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks tensor c" in refused(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_told(checkpoint: Path, text: str):
    (checkpoint / "model.safetensors.index.json").write_text(text)
    assert "not a safetensors index" in refused(checkpoint)


def test_the_tokenizer_is_the_leaders(checkpoint: Path):
    (checkpoint / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(checkpoint)
    assert judge(checkpoint, is_leader=False).level == "ok"
