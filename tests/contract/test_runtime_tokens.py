"""Every runtime's logits and greedy tokens equal transformers' float32, on 1 to 4 followers."""

from itertools import product

import msgspec
import numpy as np
import pytest
from runtime_group import RUNTIMES, Group
from runtime_models import MAX_MODEL_LEN, VOCAB, reference, write_model
from runtime_sequences import Sequences

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import RowWants
from rufus_serve.runtime.candidates import pick

SETTINGS = {
    "dtype": "float32",
    "max_num_seqs": 4,
    "speculation": {"method": "ngram", "num_speculative_tokens": 3},
    "block_size": 8,
    "buckets": {"prefill": [16, 32, 64], "context": [32, 64]},
}
CASES = [
    pytest.param((kind, model, nodes), id=f"{kind}-{model}-{nodes}")
    for kind in RUNTIMES
    for model, nodes in product(RUNTIMES[kind].models, RUNTIMES[kind].follower_counts)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = write_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request, folders):
    """A group, what judges it, and how close it must come."""
    kind, model, nodes = request.param
    folder = folders(model)
    group = Group(RUNTIMES[kind], SETTINGS | {"model": str(folder), "nodes": nodes})
    group.start()
    yield group, reference(folder), RUNTIMES[kind].float32_atol
    group.close()


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()


def test_prompts_at_the_edges_of_buckets_are_prefilled(case):
    group, expected, atol = case
    for length in (1, 2, 8, 15, 16, 17, 31, 32, 33, 63, 64):
        sequences = Sequences(group, seed=length)
        sequences.add("a", prompt(length, length))
        logits = sequences.prefill("a")
        np.testing.assert_allclose(logits, expected.logits(sequences.tokens["a"]), atol=atol)


def test_a_batch_is_generated_token_for_token(case):
    group, expected, _ = case
    sequences = Sequences(group)
    prompts = {"a": prompt(1, 1), "b": prompt(30, 2), "c": prompt(7, 3)}
    for name, tokens in prompts.items():
        sequences.add(name, tokens)
    made = sequences.generate(list(prompts), 36)
    assert made == {name: expected.greedy(tokens, 36) for name, tokens in prompts.items()}


def test_rows_come_and_go_between_decodes(case):
    group, expected, atol = case
    sequences = Sequences(group)
    names = ["a", "b", "c", "d"]
    for index, name in enumerate(names):
        sequences.add(name, prompt(9 + 5 * index, index))
        sequences.prefill(name)
    for rows in (["a"], ["d", "b"], ["c", "a", "d"], ["b", "c", "d", "a"], ["c"]):
        for name in rows:
            sequences.tokens[name].append(17 + len(sequences.tokens[name]))
        for name, logits in zip(rows, sequences.decode(*rows), strict=True):
            np.testing.assert_allclose(logits, expected.logits(sequences.tokens[name]), atol=atol)


def test_a_prefill_starts_where_cached_blocks_end(case):
    group, expected, atol = case
    sequences = Sequences(group)
    sequences.add("first", prompt(40))
    sequences.prefill("first")
    for cached, more in ((8, 1), (16, 3), (40, 16), (40, 17)):
        tokens = prompt(40)[:cached] + prompt(more, 9)
        sequences.add("second", tokens, shared_with="first", computed=cached)
        logits = sequences.prefill("second")
        np.testing.assert_allclose(logits, expected.logits(tokens), atol=atol)


def test_a_long_prompt_is_prefilled_in_segments(case):
    group, expected, atol = case
    sequences = Sequences(group)
    sequences.add("long", prompt(MAX_MODEL_LEN - 1))
    assert sequences.prefill("long", up_to=64, want_logits=False) is None
    assert sequences.prefill("long", up_to=77, want_logits=False) is None
    logits = sequences.prefill("long")
    np.testing.assert_allclose(logits, expected.logits(sequences.tokens["long"]), atol=atol)
    sequences.tokens["long"].append(5)
    logits = sequences.decode("long")[0]
    np.testing.assert_allclose(logits, expected.logits(sequences.tokens["long"]), atol=atol)


def test_several_tokens_of_a_sequence_are_decoded_as_one_by_one(case):
    group, expected, atol = case
    if not group.info.multi_token_decode:
        pytest.skip("one token a row")
    sequences = Sequences(group)
    for name, length in (("a", 29), ("b", 6)):
        sequences.add(name, prompt(length, length))
        sequences.prefill(name)
    sequences.tokens["b"].append(40)
    sequences.tokens["a"] += [11, 5, 5, 60]
    *drafted, other = sequences.decode_several("a", "b")
    for count, logits in enumerate(drafted, start=30):
        np.testing.assert_allclose(
            logits, expected.logits(sequences.tokens["a"][:count]), atol=atol
        )
    np.testing.assert_allclose(other, expected.logits(sequences.tokens["b"]), atol=atol)


def test_rejected_tokens_leave_nothing_behind(case):
    group, expected, atol = case
    if not group.info.multi_token_decode:
        pytest.skip("one token a row")
    sequences = Sequences(group)
    sequences.add("a", prompt(30))
    sequences.prefill("a")
    sequences.tokens["a"] += [11, 5, 60, 7]
    sequences.decode_several("a")
    del sequences.tokens["a"][31:]
    sequences.computed["a"] = 31
    sequences.tokens["a"] += [8, 9]
    *_, logits = sequences.decode_several("a")
    np.testing.assert_allclose(logits, expected.logits(sequences.tokens["a"]), atol=atol)


def test_candidates_are_the_best_of_the_whole_rows(case):
    group, _, _ = case
    sequences = Sequences(group)
    for index, name in enumerate("abc"):
        sequences.add(name, prompt(9 + index, index))
        sequences.prefill(name)
        sequences.tokens[name].append(17)
    step = sequences.decode_request("a", "b", "c")
    named = np.array([3, VOCAB - 1, 3], np.int32)
    wants = RowWants(
        num_candidates=np.array([1, 40, VOCAB - 1], np.int32),
        temperatures=np.array([[0, 0], [0.7, 1], [1, 0]], np.float32),
        num_token_ids=np.array([0, 2, 1], np.int32),
        token_ids=named,
    )
    expected = pick(group.step(step).copy(), wants)
    found = group.step(msgspec.structs.replace(step, wants=wants))
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_array_equal(found.token_logits, expected.token_logits)
    np.testing.assert_allclose(found.log_totals, expected.log_totals, atol=1e-6)


@pytest.mark.parametrize("segments", [[64, 100], [2], [64, 127]])
def test_every_token_of_a_prompt_is_as_likely_as_it_is_to_transformers(case, segments):
    group, expected, atol = case
    if not group.info.prompt_logprobs:
        pytest.skip("logits of last positions only")
    sequences = Sequences(group)
    sequences.add("a", prompt(segments[-1], 3))
    ids, logprobs, ranks = sequences.prompt_logprobs("a", segments, num_best=5)
    tokens = np.array(sequences.tokens["a"])
    of_all = expected.logprobs(tokens.tolist())[:-1]
    assert ids[:, 0].tolist() == tokens[1:].tolist()
    np.testing.assert_allclose(logprobs, np.take_along_axis(of_all, ids, axis=1), atol=atol)
    np.testing.assert_allclose(logprobs[:, 1:], -np.sort(-of_all, axis=1)[:, :5], atol=atol)
    own = np.take_along_axis(of_all, tokens[1:, None], axis=1)
    assert ((of_all > own + atol).sum(axis=1) < ranks).all()
    assert (ranks <= (of_all > own - atol).sum(axis=1)).all()


def test_logits_belong_to_the_caller(case):
    group, _, _ = case
    sequences = Sequences(group)
    sequences.add("a", prompt(5))
    sequences.add("b", prompt(6, 1))
    first = sequences.prefill("a")
    kept = first.copy()
    sequences.prefill("b")
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, kept)


def test_a_step_that_fits_no_bucket_is_refused_and_the_next_one_runs(case):
    group, expected, atol = case
    sequences = Sequences(group)
    sequences.add("a", prompt(65))
    with pytest.raises(RuntimeStepError, match=r"65 new tokens.*largest bucket"):
        sequences.prefill("a")
    sequences.add("b", prompt(20))
    logits = sequences.prefill("b")
    np.testing.assert_allclose(logits, expected.logits(prompt(20)), atol=atol)


def test_a_step_outside_of_the_cache_is_refused(case):
    group, _, _ = case
    sequences = Sequences(group)
    sequences.add("a", prompt(5))
    good = sequences.prefill_request("a", 5)
    for bad in (
        {"block_table": np.array([[group.num_blocks]], np.int32)},
        {"slot_mapping": np.full(5, group.num_blocks * 8, np.int32)},
        {"slot_mapping": np.full(5, -1, np.int32)},
        {"slot_mapping": np.zeros(4, np.int32)},
        {"token_ids": np.full(5, VOCAB, np.int32)},
        {"context_lens": np.array([0], np.int32)},
    ):
        with pytest.raises(RuntimeStepError, match=f"step {good.step_id}"):
            group.all("prefill", msgspec.structs.replace(good, **bad))
