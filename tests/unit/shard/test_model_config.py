"""config.json is read by the rules of its architecture."""

import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.shard.model_config import read_model_config

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(model_type, **more):
        raw = SIZES | {"model_type": model_type} | more
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return read_model_config(tmp_path)

    return read


@pytest.mark.parametrize(
    ("model_type", "more", "windows"),
    [
        ("llama", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("mistral", {"sliding_window": None}, (0, 0, 0, 0)),
        ("mistral", {}, (4096,) * 4),
        ("qwen2", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
         (0, 0, 0, 8)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, (0, 0, 0, 0)),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True,
                   "layer_types": ["full_attention", "sliding_attention"] * 2}, (0, 8, 0, 8)),
    ],
)  # fmt: skip
def test_windows_follow_the_architecture(read, model_type, more, windows):
    assert read(model_type, **more).windows == windows


@pytest.mark.parametrize(
    ("model_type", "more", "flags"),
    [
        ("llama", {}, (False, False, False, False)),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("mistral", {"attention_bias": True}, (False, False, False, False)),
        ("qwen2", {}, (True, False, False, False)),
        ("qwen3", {}, (False, False, False, True)),
        ("qwen3", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_norms_follow_the_architecture(read, model_type, more, flags):
    model = read(model_type, **more)
    assert (model.qkv_bias, model.output_bias, model.mlp_bias, model.qk_norm) == flags


@pytest.mark.parametrize(
    ("model_type", "more", "head_size"),
    [("llama", {}, 16), ("llama", {"head_dim": 20}, 20), ("qwen3", {}, 128),
     ("mistral", {"head_dim": None}, 16)],
)  # fmt: skip
def test_the_head_size_is_given_or_implied(read, model_type, more, head_size):
    assert read(model_type, **more).head_size == head_size


@pytest.mark.parametrize(
    ("more", "dtype"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({}, "")],
)
def test_the_dtype_is_read_under_both_names(read, more, dtype):
    assert read("llama", **more).dtype == dtype


def test_layer_types_must_name_every_layer(read):
    with pytest.raises(ModelError, match="layer_types must name 4 times"):
        read("qwen2", use_sliding_window=True, sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, []])
def test_counts_must_be_positive_integers(read, value):
    with pytest.raises(ModelError, match="num_attention_heads must be a positive integer"):
        read("llama", num_attention_heads=value)
