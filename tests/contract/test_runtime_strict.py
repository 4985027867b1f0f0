"""The CPU runtime and the one that keeps the device's rules answer every schedule alike.

`tests/nxdi/test_nxdi_equals_cpu.py` runs the same schedules through NxD Inference as well.
"""

import msgspec
import numpy as np
import pytest
from runtime_group import Group, RuntimeKind
from runtime_models import VOCAB, reference, write_model
from runtime_sequences import Sequences as RawSequences
from step_sequences import DRAFTED, LAYOUTS, SCHEDULES, Sequences, agreeing

from rufus_serve.errors import CollectiveAborted, ModelError, RuntimeStepError

ATOL = 2e-4
SETTINGS = {"runtime": "cpu", "dtype": "float32", "max_num_seqs": 4, "cpu": {"threads": 1}}
CPU = RuntimeKind("rufus_serve.runtime.cpu", "CpuRuntime", settings=SETTINGS)
STRICT = RuntimeKind(
    "rufus_serve.runtime.cpu.strict", "StrictCpuRuntime",
    settings=SETTINGS | {"cpu": {"threads": 1, "strict_neuron": True}},
)  # fmt: skip
CASES = [(layout, nodes) for layout in LAYOUTS for nodes in (1, 3)] + [("drafted", 1)]
SIZES = LAYOUTS | {"drafted": DRAFTED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def start(folder):
    groups = []

    def start(kind, layout, nodes=1, **more):
        settings = SIZES[layout] | {"model": str(folder), "nodes": nodes} | more
        groups.append(Group(kind, settings))
        return groups[-1].start()

    yield start
    for group in groups:
        group.close()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request, start):
    """A strict group, and a CPU group that holds blocks of the same shape."""
    layout, nodes = request.param
    strict = start(STRICT, layout, nodes)
    return layout, strict, start(CPU, layout, nodes, block_size=strict.info.block_size)


def prompt_maker():
    random = np.random.default_rng(7)
    return lambda length: random.integers(3, VOCAB, length).tolist()


def test_both_answer_every_schedule_alike(pair):
    layout, strict, cpu = pair
    for schedule in SCHEDULES[layout]:
        schedule(Sequences(agreeing(cpu, strict, atol=ATOL), strict.info), prompt_maker())


def test_greedy_tokens_are_those_of_transformers(pair, folder):
    _, strict, _ = pair
    sequences = Sequences(strict.step, strict.info)
    prompts = {"a": prompt_maker()(1), "b": prompt_maker()(60)}
    for name, tokens in prompts.items():
        sequences.add(name, tokens)
    for _ in range(8):
        sequences.decode("b", "a")
    for name, tokens in prompts.items():
        assert sequences.tokens[name] == tokens + reference(folder).greedy(tokens, 8)


def test_the_leader_is_told_what_a_neuron_follower_would_tell_it(start):
    info = start(STRICT, "contiguous").info
    assert (info.block_size, info.num_blocks, info.max_model_len) == (128, 5, 128)
    assert (info.decode_batch_buckets, info.context_buckets) == ((4,), (32, 64, 128))
    assert not info.prefix_caching
    assert not info.segmented_prefill
    info = start(STRICT, "block").info
    assert (info.block_size, info.num_blocks) == (32, 65)
    assert info.prefix_caching
    assert info.segmented_prefill


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [CPU, STRICT], ids=["cpu", "strict"])
def test_a_group_may_warm_up_after_its_first_step(start, kind, layout, folder):
    """As after a loss, when nobody warms up; torch guards what was made in inference mode."""
    group = start(kind, layout, 2)
    group.all_of([("join", spec) for spec in group.specs(2)])
    tokens = prompt_maker()(20)
    for _ in range(2):
        sequences = Sequences(group.step, group.info)
        sequences.add("a", tokens)
        sequences.decode("a")
        sequences.decode("a")
        assert sequences.tokens["a"] == tokens + reference(folder).greedy(tokens, 2)
        group.all("warm_up")


def test_a_chunked_prefill_is_refused_in_the_contiguous_layout(start):
    group = start(STRICT, "contiguous")
    sequences = RawSequences(group)
    sequences.add("a", prompt_maker()(20))
    sequences.prefill("a", up_to=10)
    with pytest.raises(RuntimeStepError, match="prefills from position 0"):
        sequences.prefill("a")


def test_a_follower_that_is_given_other_tokens_fails_the_call(start):
    """Without the check, the sum over shards of two different prompts would be an answer."""
    group = start(STRICT, "contiguous", 2)
    sequences = RawSequences(group)
    sequences.add("a", prompt_maker()(20))
    step = sequences.prefill_request("a", 20)
    other = msgspec.structs.replace(step, token_ids=step.token_ids + 1)
    futures = [
        worker.submit("prefill", each)
        for worker, each in zip(group.workers, (step, other), strict=True)
    ]
    errors = [future.exception(30) for future in futures]
    assert any("followers' calls differ" in str(error) for error in errors)
    assert all(isinstance(error, RuntimeStepError | CollectiveAborted) for error in errors)


def test_a_follower_that_missed_a_call_fails_the_next_one(start):
    group = start(STRICT, "block", 2)
    sequences = RawSequences(group)
    sequences.add("a", prompt_maker()(20))
    sequences.add("b", prompt_maker()(20))
    first, second = sequences.prefill_request("a", 20), sequences.prefill_request("b", 20)
    futures = [
        group.workers[0].submit("prefill", first),
        group.workers[1].submit("prefill", second),
    ]
    errors = [future.exception(30) for future in futures]
    assert any("same calls in the same order" in str(error) for error in errors)
    assert all(errors)


def test_the_cpu_runtime_alone_would_answer_from_different_tokens(start):
    """What the check is for: nothing else notices."""
    group = start(CPU, "block", 2)
    sequences = RawSequences(group)
    sequences.add("a", prompt_maker()(20))
    step = sequences.prefill_request("a", 20)
    good = group.step(step)
    other = msgspec.structs.replace(step, token_ids=(step.token_ids + 1) % VOCAB)
    futures = [
        worker.submit("prefill", each)
        for worker, each in zip(group.workers, (step, other), strict=True)
    ]
    assert np.abs(futures[0].result(30) - good).max() > 0.01


def test_calls_are_counted_anew_in_the_next_epoch(start, folder):
    group = start(STRICT, "block", 2)
    sequences = RawSequences(group)
    sequences.add("a", prompt_maker()(20))
    missed = sequences.prefill_request("a", 20)
    waiting = group.workers[0].submit("prefill", missed)
    group.all("abort")
    assert isinstance(waiting.exception(30), CollectiveAborted)
    group.join(2)
    tokens = prompt_maker()(20)
    sequences = Sequences(group.step, group.info)
    sequences.add("a", tokens)
    for _ in range(3):
        sequences.decode("a")
    assert sequences.tokens["a"] == tokens + reference(folder).greedy(tokens, 3)


def test_windowed_attention_is_refused(start, tmp_path):
    folder = write_model(tmp_path / "model", "mistral")
    with pytest.raises(ModelError, match="sliding_window 24 < max_model_len 128"):
        start(STRICT, "contiguous", model=str(folder))
