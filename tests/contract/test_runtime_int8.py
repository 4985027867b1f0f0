"""Weights of 8 bits: whoever holds which part, the answers are those of the dequantized model."""

import numpy as np
import pytest
import torch
from runtime_group import RUNTIMES, Group
from runtime_models import MAX_MODEL_LEN, VOCAB, reference, write_model
from runtime_sequences import Sequences
from safetensors.torch import load_file, save_file

SIZES = {
    "llama": {"hidden_size": 144, "head_dim": 16},
    "llama3": {"hidden_size": 96, "head_dim": 48},
    "qwen3": {},
}
"""Head sizes that the kernels take; tied embeddings, biases, norms of heads."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOLERANCE = 0.1
"""Of the root mean square of a row's logits, for what is computed in bfloat16."""


def rounded(weight):
    """Each output in steps of a 127th of its largest magnitude."""
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(weight * (1 / step)) * step


@pytest.fixture(scope="module", params=SIZES)
def folders(request, tmp_path_factory):
    """A checkpoint, and one with the weights that 8 bits of it stand for."""
    name = request.param
    paths = [tmp_path_factory.mktemp(f"{name}-{kind}") for kind in ("whole", "rounded")]
    whole, copy = (write_model(path, name, **SIZES[name]) for path in paths)
    file = copy / "model.safetensors"
    weights = load_file(file)
    changed = {
        key: rounded(value) if key.split(".")[-2] in LAYERS and value.ndim == 2 else value
        for key, value in weights.items()
    }
    assert sum(not torch.equal(changed[key], weights[key]) for key in weights) == 2 * len(LAYERS)
    save_file(changed, file, {"format": "pt"})
    return whole, copy


def group_of(folder, *, nodes, dtype, kernels="auto"):
    settings = {
        "model": str(folder), "nodes": nodes, "dtype": dtype, "weights": "int8",
        "max_num_seqs": 4, "block_size": 8, "buckets": {"prefill": [16, 64], "context": [32, 64]},
        "cpu": {"kernels": kernels},
    }  # fmt: skip
    return Group(RUNTIMES["cpu"], settings).start()


def prompt(length, seed):
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def run(group):
    """Logits of prefills, whole and in segments, and of decodes; and their tokens."""
    sequences, found = Sequences(group), []
    for name, length in (("a", 1), ("b", 47), ("c", MAX_MODEL_LEN - 9)):
        sequences.add(name, prompt(length, length))
        for end in range(64, length, 64):
            sequences.prefill(name, up_to=end, want_logits=False)
        found.append((sequences.prefill(name), list(sequences.tokens[name])))
    for turn in range(4):
        names = [["a", "b", "c"], ["c", "a"]][turn % 2]
        for name in names:
            sequences.tokens[name].append(17 + turn)
        rows = zip(names, sequences.decode(*names), strict=True)
        found += [(logits, list(sequences.tokens[name])) for name, logits in rows]
    return found


def distance(logits, expected):
    """Root mean square of the differences, in that of what is expected."""
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("nodes", [1, 3])
def test_float32_answers_are_those_of_the_dequantized_model(folders, nodes):
    whole, copy = folders
    group, expected = group_of(whole, nodes=nodes, dtype="float32"), reference(copy)
    try:
        for logits, tokens in run(group):
            np.testing.assert_allclose(logits, expected.logits(tokens), atol=2e-4, rtol=0)
    finally:
        group.close()


@pytest.mark.parametrize(("nodes", "kernels"), [(1, "auto"), (3, "auto"), (1, "torch")])
def test_bfloat16_answers_are_near_the_dequantized_model(folders, nodes, kernels):
    whole, copy = folders
    group = group_of(whole, nodes=nodes, dtype="bfloat16", kernels=kernels)
    expected = reference(copy)
    try:
        for logits, tokens in run(group):
            assert distance(logits, expected.logits(tokens)) < TOLERANCE
    finally:
        group.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompts_tokens_are_as_likely_as_to_the_dequantized_model(folders, dtype):
    whole, copy = folders
    group, tokens = group_of(whole, nodes=2, dtype=dtype), prompt(64, 5)
    expected = reference(copy).logprobs(tokens)[:-1]
    try:
        sequences = Sequences(group)
        sequences.add("a", tokens)
        ids, logprobs, _ = sequences.prompt_logprobs("a", [64], num_best=0)
        own = np.take_along_axis(expected, ids, axis=1)
        limit = 2e-4 if dtype == "float32" else TOLERANCE * expected.std()
        assert np.sqrt(np.mean((logprobs - own) ** 2)) < limit
    finally:
        group.close()
