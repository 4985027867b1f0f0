"""What config.json says of a decoder is taken by the rules of its architecture, or refused."""

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


def test_an_odd_head_cannot_be_rotated(read):
    with pytest.raises(ModelError, match="head_dim must be even for rotary embedding, got 15"):
        read("llama", head_dim=15)


@pytest.mark.parametrize(("name", "taken"), [("swish", "silu"), ("gelu_new", "gelu_pytorch_tanh")])
def test_an_activation_has_one_name(read, name, taken):
    assert read("llama", hidden_act=name).activation == taken
