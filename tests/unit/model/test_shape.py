import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.model.shape import MODEL_TYPES, ModelShape, read_model_shape
from rufus_serve.plan.published import LLAMA2_13B, LLAMA3_8B, LLAMA3_70B, LLAMA31_405B

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
}
VARIANTS = {
    "llama": [{}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True}],
    "mistral": [{}, {"head_dim": 32}],
    "qwen2": [{}, {"tie_word_embeddings": True}],
    "qwen3": [{"head_dim": 32}, {"head_dim": 16, "attention_bias": True}],
    "mixtral": [{"num_local_experts": 4, "num_experts_per_tok": 2}],
    "qwen3_moe": [
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
        {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16, "decoder_sparse_step": 2},
        {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16, "mlp_only_layers": [0]},
    ],
}
CASES = [(kind, options) for kind, variants in VARIANTS.items() for options in variants]


def transformers_count(config: object) -> int:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_model_type_is_covered():
    assert set(VARIANTS) == set(MODEL_TYPES)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{k}-{o}" for k, o in CASES])
def test_parameters_are_counted_as_transformers_counts_them(tmp_path, kind, options):
    config = transformers.AutoConfig.for_model(kind, **SIZES, **options)
    config.save_pretrained(tmp_path)
    assert read_model_shape(tmp_path).num_params == transformers_count(config)


@pytest.mark.parametrize(
    ("shape", "total"),
    [
        (LLAMA3_8B, 8_030_261_248),
        (LLAMA2_13B, 13_015_864_320),
        (LLAMA3_70B, 70_553_706_496),
        (LLAMA31_405B, 405_853_388_800),
    ],
)
def test_known_models_have_their_known_totals(shape, total):
    assert shape.num_params == total


def test_mixtral_8x7b_has_its_known_totals(tmp_path):
    config = transformers.MixtralConfig(
        num_local_experts=8, vocab_size=32000, num_key_value_heads=8
    )
    config.save_pretrained(tmp_path)
    shape = read_model_shape(tmp_path)
    assert shape.num_params == 46_702_792_704
    active = shape.num_matmul_params + shape.embedding_params
    assert active / 1e9 == pytest.approx(12.88, abs=0.01)


def test_the_older_name_of_the_number_of_experts_is_read(tmp_path):
    raw = {
        **SIZES, "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
    }  # fmt: skip
    shape = written(tmp_path, raw)
    assert (shape.num_experts, shape.num_moe_layers, shape.head_size) == (6, 3, 128)


def test_a_file_may_be_named_instead_of_its_folder(tmp_path):
    written(tmp_path, {**SIZES, "model_type": "llama"})
    assert read_model_shape(tmp_path / "config.json").num_layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2' is not known"),
        ({"num_key_value_heads": 3}, "4 % 3 = 1"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, got None"),
        ({"vocab_size": -1}, "vocab_size must be a positive integer, got -1"),
    ],
)
def test_a_bad_config_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        written(tmp_path, {**SIZES, "model_type": "llama", **change})


def test_an_absent_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        read_model_shape(tmp_path)


def test_a_config_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_model_shape(tmp_path)


def test_a_quantized_checkpoint_is_recognized(tmp_path):
    raw = {**SIZES, "model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    assert written(tmp_path, raw).quantization == "fp8"


def written(folder, raw: dict) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(raw))
    return read_model_shape(folder)
