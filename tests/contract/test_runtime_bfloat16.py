"""bfloat16 steps stay near transformers' float32: with compiled kernels, and with plain torch."""

import numpy as np
import pytest
from runtime_group import RUNTIMES, Group
from runtime_models import MAX_MODEL_LEN, VOCAB, reference, write_model
from runtime_sequences import Sequences
from safetensors.torch import load_file, save_file

from rufus_serve.kernels.library import KernelsUnavailable, load_library

SIZES = {
    "llama": {"hidden_size": 144, "head_dim": 16},
    "llama3": {"hidden_size": 96, "head_dim": 48},
    "mistral": {"head_dim": 32},
    "qwen2": {"hidden_size": 96},
    "qwen2-windows": {"hidden_size": 96},
    "qwen3": {},
}
"""Head sizes that the kernels take."""
TOLERANCE = 0.1
"""Of the root mean square of a row's logits; another token in the context makes about 1."""

ROUNDING = 0.02
"""Nats by which one token's log-likelihood may differ if other tokens share its call."""


def distance(logits, expected):
    """Root mean square of the differences, in that of what is expected."""
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


def kernels():
    try:
        return load_library().name
    except KernelsUnavailable:
        return "torch"


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory):
    """A checkpoint whose weights lose nothing in bfloat16, so that only computing is judged."""
    name = request.param
    folder = write_model(tmp_path_factory.mktemp(name), name, **SIZES[name])
    file = folder / "model.safetensors"
    rounded = {key: tensor.bfloat16().float() for key, tensor in load_file(file).items()}
    save_file(rounded, file, {"format": "pt"})
    return folder


def group_of(folder, nodes, wanted="auto", **cpu):
    settings = {
        "model": str(folder), "nodes": nodes, "dtype": "bfloat16", "max_num_seqs": 4,
        "block_size": 8, "buckets": {"prefill": [16, 64], "context": [32, 64]},
        "cpu": {"kernels": wanted} | cpu, "speculation": {"method": "ngram"},
    }  # fmt: skip
    return Group(RUNTIMES["cpu"], settings).start()


def prompt(length, seed):
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def run(group):
    """Logits of prefills, whole and in segments, and of decodes in batches; and their tokens."""
    sequences, found = Sequences(group), []
    for name, length in (("a", 1), ("b", 47), ("c", 64), ("d", MAX_MODEL_LEN - 9)):
        sequences.add(name, prompt(length, length))
        for end in range(64, length, 64):
            assert sequences.prefill(name, up_to=end, want_logits=False) is None
        found.append((sequences.prefill(name), list(sequences.tokens[name])))
    for turn in range(8):
        names = [["a", "b", "c", "d"], ["d", "a"], ["c", "b", "d"]][turn % 3]
        for name in names:
            sequences.tokens[name].append(17 + turn)
        decoded = sequences.decode(*names)
        rows = zip(names, decoded, strict=True)
        found += [(logits, list(sequences.tokens[name])) for name, logits in rows]
    return found


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_logits_are_near_float32(folder, nodes):
    group, expected = group_of(folder, nodes), reference(folder)
    try:
        assert {info.kernels for info in group.infos} == {kernels()}
        for logits, tokens in run(group):
            assert distance(logits, expected.logits(tokens)) < TOLERANCE
    finally:
        group.close()


def test_kernels_are_nearer_than_torch(folder):
    expected, errors = reference(folder), {}
    for wanted in ("auto", "torch"):
        group = group_of(folder, 1, wanted)
        try:
            distances = [distance(logits, expected.logits(row)) for logits, row in run(group)]
            errors[group.info.kernels] = np.mean(distances)
        finally:
            group.close()
    assert errors[kernels()] <= errors["torch"]


def test_torch_has_one_thread_beside_the_threads_of_the_kernels(folder, monkeypatch):
    if kernels() == "torch":
        pytest.skip("no kernels for this CPU")
    counts = []
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    for wanted in ("torch", "auto"):
        group_of(folder, 1, wanted, threads=2).close()
    assert counts == [2, 2, 2, 1]


def test_kernels_give_several_tokens_in_a_step_the_bits_of_one_by_one(folder):
    if kernels() == "torch":
        pytest.skip("no kernels here")
    group = group_of(folder, 1)
    try:
        found = []
        for drafted in (False, True):
            sequences = Sequences(group)
            sequences.add("a", prompt(45, 1))
            sequences.prefill("a")
            more = prompt(7, 2)
            if drafted:
                sequences.tokens["a"] += more
                found.append(sequences.decode_several("a"))
            else:
                rows = []
                for token in more:
                    sequences.tokens["a"].append(token)
                    rows.append(sequences.decode("a")[0])
                found.append(np.stack(rows))
        assert (found[0] == found[1]).all()
    finally:
        group.close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_prompts_tokens_are_as_likely_as_the_logits_behind_them_say(folder, nodes):
    group = group_of(folder, nodes)
    try:
        sequences, tokens = Sequences(group), prompt(100, 4)
        sequences.add("a", tokens)
        ids, logprobs, ranks = sequences.prompt_logprobs("a", [64, 100], num_best=2)
        for at in (0, 1, 63, 64, 98):
            sequences.add("b", tokens[: at + 1])
            if at >= 64:
                sequences.prefill("b", up_to=64, want_logits=False)
            row = sequences.prefill("b")
            of_all = row - np.logaddexp.reduce(row.astype(np.float64))
            np.testing.assert_allclose(logprobs[at], of_all[ids[at]], atol=ROUNDING)
            likelier = of_all >= of_all[tokens[at + 1]] + np.array([[ROUNDING], [-ROUNDING]])
            assert likelier[0].sum() < ranks[at] <= likelier[1].sum()
            best = np.sort(of_all)[::-1][:2]
            np.testing.assert_allclose(of_all[ids[at, 1:]], best, atol=ROUNDING)
    finally:
        group.close()


@pytest.mark.parametrize("nodes", [1, 2])
def test_prompts_prefilled_together_have_the_bits_of_each_alone(folder, nodes):
    if kernels() == "torch":
        pytest.skip("no kernels here")
    group = group_of(folder, nodes)
    try:
        prompts = {"a": prompt(21, 1), "b": prompt(1, 2), "c": prompt(16, 3) + prompt(9, 4)}
        alone = []
        for name, tokens in prompts.items():
            sequences = Sequences(group)
            sequences.add(name, tokens)
            alone.append(sequences.prefill(name))
        sequences = Sequences(group)
        for name, tokens in prompts.items():
            sequences.add(name, tokens)
        assert (sequences.prefill_together(*prompts) == np.stack(alone)).all()
        # One of them may go on from blocks that another fills in the same step.
        sequences.add("first", prompt(16, 3))
        sequences.prefill_request("first", 16)  # It has its blocks then.
        sequences.add("second", prompts["c"], shared_with="first", computed=16)
        assert (sequences.prefill_together("first", "second")[1] == alone[2]).all()
    finally:
        group.close()
