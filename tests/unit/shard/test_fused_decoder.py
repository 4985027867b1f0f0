import pytest
from msgspec.structs import replace

from rufus_serve.shard.fused_decoder import unsupported
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.rope import RopeConfig

MODEL = ModelConfig(
    model_type="llama", hidden_size=576, intermediate_size=1537, num_layers=2, num_q_heads=9,
    num_kv_heads=3, head_size=64, vocab_size=49153, max_model_len=2048,
    rms_norm_eps=1e-5, activation="silu", rope=RopeConfig(theta=1e4), dtype="bfloat16",
    windows=(0, 24),
)  # fmt: skip


def test_takes_llamas_whatever_their_inner_and_vocabulary_sizes():
    assert unsupported(MODEL) == ""
    assert unsupported(replace(MODEL, head_size=256, qk_norm=True, qkv_bias=True)) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "gelu"}, "activation gelu"),
        ({"head_size": 24}, "head size 24"),
        ({"head_size": 272}, "head size 272"),
        ({"hidden_size": 72}, "hidden size 72"),
    ],
)
def test_says_what_it_has_no_kernel_for(change, words):
    assert words in unsupported(replace(MODEL, **change))
