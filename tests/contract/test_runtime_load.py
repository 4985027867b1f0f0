"""What a runtime says of a checkpoint: what fits, what is refused, and why."""

import json

import numpy as np
import pytest
import torch
from runtime_group import RUNTIMES, Group
from runtime_models import MAX_MODEL_LEN, VOCAB, reference, write_model
from runtime_sequences import Sequences

from rufus_serve.errors import ModelError

SETTINGS = {"dtype": "float32", "block_size": 8, "max_num_seqs": 4, "buckets": {"prefill": [32]}}
PROMPT = np.random.default_rng(3).integers(3, VOCAB, 25).tolist()
BFLOAT16_ATOL = 0.25
"""Logits of the tiny models spread by about 3; bfloat16 keeps 8 bits of each intermediate."""


@pytest.fixture(params=list(RUNTIMES))
def start(request):
    """Starts groups of one runtime."""
    groups = []

    def start(folder, nodes=1, **more):
        settings = SETTINGS | {"model": str(folder), "nodes": nodes} | more
        groups.append(Group(RUNTIMES[request.param], settings))
        return groups[-1].start()

    yield start
    for group in groups:
        group.close()


@pytest.fixture
def refused(start):
    """Asserts that loading fails, with a message that says all of `words`."""

    def refused(folder, *words, **more):
        with pytest.raises(ModelError) as raised:
            start(folder, **more)
        for word in words:
            assert word in str(raised.value)

    return refused


def rewrite(folder, *, remove=(), **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    for key in remove:
        config.pop(key, None)
    path.write_text(json.dumps(config))
    return config


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", "llama")


def logits_of(group, tokens=PROMPT):
    sequences = Sequences(group)
    sequences.add("a", tokens)
    return sequences.prefill("a")


def test_the_info_describes_the_whole_model(start, folder):
    group = start(folder, 2)
    for info in group.infos:
        assert (info.model_type, info.num_layers) == ("llama", 2)
        assert (info.num_kv_heads, info.head_size, info.vocab_size) == (3, 8, VOCAB)
        assert (info.dtype, info.block_size, info.max_model_len) == ("float32", 8, MAX_MODEL_LEN)
        assert info.prefill_buckets == (32,)
        assert info.decode_batch_buckets == (1, 2, 4)
        assert info.context_buckets == (MAX_MODEL_LEN,)
        assert info.num_blocks > MAX_MODEL_LEN // 8


def test_followers_hold_about_their_share_of_the_weights(start, folder):
    whole = start(folder, 1).info.weights_bytes
    shares = [info.weights_bytes for info in start(folder, 3).infos]
    assert max(shares) < 0.4 * whole
    assert sum(shares) == pytest.approx(whole, rel=0.02)


def test_a_checkpoint_in_several_files_is_read(start, tmp_path):
    folder = write_model(tmp_path, "qwen3", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    expected = reference(folder).logits(PROMPT)
    np.testing.assert_allclose(logits_of(start(folder, 2)), expected, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "llama3", "mistral", "qwen3"])
def test_a_config_of_transformers_4_means_the_same(start, tmp_path, name):
    folder = write_model(tmp_path, name)
    expected = reference(folder).logits(PROMPT)
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    scaling = None if rope["rope_type"] == "default" else dict(rope)
    rewrite(
        folder,
        remove=["rope_parameters", "dtype"],
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        torch_dtype="float32",
    )
    np.testing.assert_allclose(logits_of(start(folder)), expected, atol=2e-4)


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def own_output(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def same_output(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def only_output(tensors):
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize("change", [own_output, same_output, only_output])
def test_of_tied_matrices_the_files_have_the_last_word(start, folder, change):
    change_weights(folder, change)
    expected = reference(folder).logits(PROMPT)
    np.testing.assert_allclose(logits_of(start(folder, 2)), expected, atol=2e-4)


def test_an_output_layer_beside_the_flag_is_told(start, folder, caplog):
    change_weights(folder, own_output)
    start(folder)
    assert "tie_word_embeddings is set, but lm_head.weight is another matrix" in caplog.text


def test_a_stale_copy_of_a_tensor_is_not_read(start, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path, "qwen3", max_shard_size="20KB")
    expected = reference(folder).logits(PROMPT)
    last = max(folder.glob("*.safetensors"))
    save_file(load_file(last) | {"model.embed_tokens.weight": torch.zeros(VOCAB, 48)}, last)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map["model.embed_tokens.weight"] != last.name
    np.testing.assert_allclose(logits_of(start(folder, 2)), expected, atol=2e-4)


def test_a_stale_single_file_beside_an_index_is_told_and_not_read(start, tmp_path, caplog):
    folder = write_model(tmp_path, "qwen3", max_shard_size="20KB")
    expected = reference(folder).logits(PROMPT)
    (folder / "model.safetensors").write_bytes(b"stale")
    np.testing.assert_allclose(logits_of(start(folder)), expected, atol=2e-4)
    assert "model.safetensors is not read" in caplog.text


def test_linear_scaling_stretches_the_longest_sequence(start, tmp_path):
    folder = write_model(tmp_path, "llama")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    rewrite(folder, rope_parameters=rope)
    group = start(folder)
    assert group.info.max_model_len == 2 * MAX_MODEL_LEN
    expected = reference(folder).logits(PROMPT)
    np.testing.assert_allclose(logits_of(group), expected, atol=2e-4)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_bfloat16_is_close(start, tmp_path, name, nodes):
    folder = write_model(tmp_path, name)
    group = start(folder, nodes, dtype="bfloat16")
    assert group.info.dtype == "bfloat16"
    sequences = Sequences(group)
    sequences.add("a", PROMPT)
    expected = reference(folder)
    np.testing.assert_allclose(sequences.prefill("a"), expected.logits(PROMPT), atol=BFLOAT16_ATOL)
    sequences.tokens["a"].append(9)
    logits = sequences.decode("a")[0]
    np.testing.assert_allclose(logits, expected.logits([*PROMPT, 9]), atol=BFLOAT16_ATOL)


@pytest.mark.parametrize(
    ("changes", "stored", "served"),
    [
        ({"dtype": "bfloat16"}, torch.float32, "bfloat16"),
        ({"dtype": "float32"}, torch.float32, "float32"),
        ({"dtype": None}, torch.bfloat16, "bfloat16"),
    ],
)
def test_dtype_auto_takes_the_checkpoints_own(start, tmp_path, changes, stored, served):
    folder = write_model(tmp_path, "llama")
    convert(folder, stored)
    rewrite(folder, **changes)
    assert start(folder, dtype="auto").info.dtype == served


def test_float16_needs_a_dtype_to_convert_to(start, refused, folder):
    convert(folder, torch.float16)
    rewrite(folder, dtype="float16")
    refused(folder, "float16", "bfloat16", dtype="auto")
    assert start(folder, dtype="float32").info.dtype == "float32"


def test_a_shorter_model_length_is_taken_and_a_longer_refused(start, refused, folder):
    assert start(folder, max_model_len=64).info.context_buckets == (64,)
    refused(folder, str(MAX_MODEL_LEN + 1), str(MAX_MODEL_LEN), max_model_len=MAX_MODEL_LEN + 1)


def test_configured_blocks_must_fit(start, refused, folder):
    assert start(folder, num_blocks=20).info.num_blocks == 20
    refused(folder, "num_blocks", "1000000", "kv_cache_gib", num_blocks=1_000_000)
    refused(folder, "max_model_len", "kv_cache_gib", cpu={"kv_cache_gib": 1e-6})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, ("gpt2", "llama, mistral, qwen2, qwen3")),
        ({"hidden_act": "mish"}, ("mish", "silu")),
        ({"quantization_config": {"quant_method": "awq"}}, ("awq", "quantized")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ("yarn", "llama3")),
        ({"rope_parameters": {"rope_type": "llama3"}}, ("rope factor",)),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
        ({"hidden_size": "wide"}, ("hidden_size", "wide")),
        ({"num_key_value_heads": 2}, ("9 % 2",)),
        ({"intermediate_size": 51}, ("mlp.gate_proj.weight", "[50, 72]", "[51, 72]")),
        ({"num_hidden_layers": 3}, ("no tensor model.layers.2",)),
        ({"tie_word_embeddings": False}, ("no tensor lm_head.weight",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_model_that_cannot_be_served_is_refused_by_name(refused, folder, changes, words):
    rewrite(folder, **changes)
    refused(folder, *words)


def test_more_followers_than_query_heads_are_refused(refused, folder):
    refused(folder, "10 > 9", nodes=10)


def test_absent_and_damaged_files_are_named(refused, folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "model.safetensors", "damaged")
    weights.write_bytes(b"not at all")
    refused(folder, "model.safetensors", "damaged")
    weights.unlink()
    refused(folder, "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    refused(folder, "b.safetensors", "missing")
    (folder / "model.safetensors.index.json").write_text("[]")
    refused(folder, "model.safetensors.index.json")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json", "JSON")
    (folder / "config.json").unlink()
    refused(folder, "config.json")


def convert(folder, dtype):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
