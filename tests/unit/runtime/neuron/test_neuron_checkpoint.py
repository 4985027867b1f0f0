import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.runtime.neuron.checkpoint import Checkpoint, config_overlay, write_overlay

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 256,
    "max_position_embeddings": 512, "dtype": "bfloat16",
}  # fmt: skip


def checkpoint(tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    return Checkpoint.read(str(tmp_path))


def test_plain_rope_parameters_become_rope_theta(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    config = config_overlay(checkpoint(tmp_path, rope_parameters=rope), 128)
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, None)


def test_scaled_rope_parameters_become_rope_scaling(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    config = config_overlay(checkpoint(tmp_path, rope_parameters=rope), 128)
    assert config["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}


def test_rope_parameters_per_layer_type_are_refused(tmp_path):
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(ModelError, match="differ per layer type"):
        config_overlay(checkpoint(tmp_path, rope_parameters=rope), 128)


def test_a_window_within_the_context_is_refused(tmp_path):
    with pytest.raises(ModelError, match="sliding_window 100 < max_model_len 128"):
        config_overlay(checkpoint(tmp_path, sliding_window=100), 128)


def test_a_window_that_never_closes_is_dropped(tmp_path):
    assert config_overlay(checkpoint(tmp_path, sliding_window=128), 128)["sliding_window"] is None


def test_a_window_that_is_not_used_is_left_alone(tmp_path):
    raw = checkpoint(tmp_path, sliding_window=100, use_sliding_window=False)
    assert config_overlay(raw, 128) == raw.raw


def test_the_overlay_has_its_own_config_and_links_to_the_rest(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    read = checkpoint(source, rope_parameters={"rope_theta": 5e5})
    folder = write_overlay(read, config_overlay(read, 128), tmp_path / "overlay")
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 5e5
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "rope_parameters" in json.loads((source / "config.json").read_text())


def test_a_config_that_reads_right_needs_no_overlay(tmp_path):
    read = checkpoint(tmp_path, rope_theta=5e5)
    assert write_overlay(read, config_overlay(read, 128), tmp_path / "overlay") == tmp_path


def test_a_folder_without_a_decoders_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        Checkpoint.read(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(ModelError, match="lacks num_attention_heads"):
        Checkpoint.read(str(tmp_path))


def test_head_size_and_kv_heads_have_the_usual_defaults(tmp_path):
    read = checkpoint(tmp_path, num_key_value_heads=None)
    assert (read.head_size, read.num_kv_heads) == (8, 8)
