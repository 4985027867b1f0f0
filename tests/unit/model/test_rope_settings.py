"""The longest context is vLLM's own, for every kind of rotary scaling."""

import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.model.rope import longest_context, per_layer_type, rope_settings

POSITIONS = 256
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "factor": 4.0}
KINDS = {
    "none": ({}, 256),
    "null": ({"rope_scaling": None}, 256),
    "default": ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 256),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 512),
    "linear by a fraction": ({"rope_scaling": {"rope_type": "linear", "factor": 1.7}}, 435),
    "linear of transformers 5": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 1024
    ),
    "the older key wins": (
        {"rope_scaling": {"type": "linear", "factor": 2.0},
         "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 512
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 512),
    "llama3": ({"rope_scaling": LLAMA3}, 256),
    "yarn": ({"rope_scaling": YARN}, 256),
    "longrope": ({"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}, 64),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), list(KINDS.values()), ids=list(KINDS))
def test_the_longest_context_is_stretched(settings, expected):
    assert longest_context(LLAMA | settings, POSITIONS) == expected


@pytest.mark.parametrize(("settings", "expected"), list(KINDS.values()), ids=list(KINDS))
def test_vllm_stretches_as_far(tmp_path, settings, expected):
    pytest.importorskip("vllm")
    from vllm.config import ModelConfig

    (tmp_path / "config.json").write_text(json.dumps(LLAMA | settings))
    config = ModelConfig(str(tmp_path), tokenizer=str(tmp_path), skip_tokenizer_init=True)
    assert config.max_model_len == expected


def test_settings_per_layer_type_are_told_apart():
    settings = {"full_attention": {"factor": 2.0, "type": "linear"}, "sliding_attention": {}}
    assert per_layer_type(settings) == ["full_attention", "sliding_attention"]
    assert longest_context({"rope_parameters": settings}, POSITIONS) == 2 * POSITIONS


@pytest.mark.parametrize("factor", ["2", 0, -1.0, True])
def test_a_factor_must_be_a_number(factor):
    with pytest.raises(ModelError, match="rope factor must be a positive number"):
        longest_context({"rope_scaling": {"type": "linear", "factor": factor}}, POSITIONS)


def test_settings_must_be_an_object():
    with pytest.raises(ModelError, match="rope settings must be an object, got 3"):
        rope_settings({"rope_scaling": 3})
