import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rufus_serve.errors import ModelError
from rufus_serve.model.config_json import read_config
from rufus_serve.runtime.neuron.overlay import config_overlay, write_overlay

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256,
    "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip


SINGLE = "model.safetensors"


def checkpoint(tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    return read_config(tmp_path)


def test_plain_rope_parameters_become_rope_theta(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    config = config_overlay(checkpoint(tmp_path, rope_parameters=rope))
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, None)


def test_scaled_rope_parameters_become_rope_scaling(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    config = config_overlay(checkpoint(tmp_path, rope_parameters=rope))
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}


def test_rope_parameters_per_layer_type_are_refused(tmp_path):
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(ModelError, match="differ per layer type"):
        config_overlay(checkpoint(tmp_path, rope_parameters=rope))


def test_a_window_that_never_closes_is_dropped(tmp_path):
    assert config_overlay(checkpoint(tmp_path, sliding_window=128))["sliding_window"] is None


def test_a_window_that_is_not_used_is_left_alone(tmp_path):
    raw = checkpoint(tmp_path, sliding_window=100, use_sliding_window=False)
    assert config_overlay(raw) == raw.raw


def test_the_overlay_has_its_own_config_and_links_to_the_rest(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    read = checkpoint(source, rope_parameters={"rope_theta": 5e5})
    folder = write_overlay(read, config_overlay(read), tmp_path / "overlay")
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 5e5
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "rope_parameters" in json.loads((source / "config.json").read_text())


def test_a_config_that_reads_right_needs_no_overlay(tmp_path):
    read = checkpoint(tmp_path, rope_theta=5e5)
    assert write_overlay(read, config_overlay(read), tmp_path / "overlay") == tmp_path


def stored(folder, **tensors):
    values = {name: np.full((4, 2), value, np.float32) for name, value in tensors.items()}
    save_file({f"{name}.weight": value for name, value in values.items()}, folder / SINGLE)


def test_an_output_layer_of_its_own_is_not_tied(tmp_path):
    config = checkpoint(tmp_path, tie_word_embeddings=True)
    stored(tmp_path, **{"lm_head": 1, "model.embed_tokens": 2})
    assert config_overlay(config)["tie_word_embeddings"] is False
    stored(tmp_path, **{"lm_head": 1, "model.embed_tokens": 1})
    assert config_overlay(config) == config.raw


def test_an_embedding_under_the_output_layers_name_is_refused(tmp_path):
    config = checkpoint(tmp_path, tie_word_embeddings=True)
    stored(tmp_path, lm_head=1)
    with pytest.raises(ModelError, match="ties the other way only"):
        config_overlay(config)


def test_a_file_that_the_index_does_not_name_is_left_out(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    config = checkpoint(source)
    for name in (SINGLE, "part.safetensors"):
        (source / name).touch()
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part.safetensors"}})
    )
    folder = write_overlay(config, config_overlay(config), tmp_path / "overlay")
    assert (folder / "part.safetensors").exists()
    assert not (folder / SINGLE).exists()
