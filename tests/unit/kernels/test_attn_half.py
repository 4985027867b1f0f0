import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.kernels.layers import (
    Context,
    RandomLayer,
    RandomStep,
    Sequence,
    Sizes,
    assert_close,
    reference_attn_half,
    run_attn_half,
)

SIZES = st.builds(
    Sizes,
    hidden=st.sampled_from([16, 48, 96]),
    head=st.sampled_from([16, 32, 48, 64, 80, 96, 128, 256]),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    block=st.sampled_from([1, 5, 16, 32]),
    window=st.sampled_from([0, 1, 7, 40, 300]),
    has_bias=st.booleans(),
    has_qk_norm=st.booleans(),
    is_int8=st.booleans(),
)
SEQUENCE = st.builds(
    Sequence,
    num_computed=st.one_of(st.just(0), st.integers(1, 40), st.integers(230, 600)),
    num_new=st.one_of(st.just(1), st.integers(2, 70)),
)


def check(kernels, sizes, sequences, num_threads=2):
    layer, step = RandomLayer(sizes), RandomStep(sizes, sequences)
    hidden, answer, cache = reference_attn_half(layer, step)
    run_attn_half(Context(kernels, num_threads), layer, step)
    assert_close(step.hidden, hidden)
    assert_close(step.cache, cache)
    assert_close(step.delta, answer)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=SIZES,
    sequences=st.lists(SEQUENCE, min_size=1, max_size=5),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_answers_as_torch_does_for_any_shape(kernels, sizes, sequences, num_threads, seed):
    torch.manual_seed(seed)
    check(kernels, sizes, sequences, num_threads)


def test_a_prompt_of_several_key_blocks_sees_all_before_it(kernels):
    torch.manual_seed(0)
    check(kernels, Sizes(), [Sequence(1100, 30), Sequence(0, 530)])


@pytest.mark.parametrize("window", [1, 17, 600])
def test_a_window_hides_whole_key_blocks(kernels, window):
    torch.manual_seed(0)
    check(kernels, Sizes(window=window), [Sequence(1030, 40), Sequence(1500, 1)])


def test_scores_far_below_zero_do_not_vanish(kernels):
    torch.manual_seed(0)
    sizes = Sizes(head=64, window=520)
    layer, step = RandomLayer(sizes), RandomStep(sizes, [Sequence(1000, 20), Sequence(1000, 1)])
    step.cache[: sizes.num_kv_heads] = 30 * torch.randn(sizes.head)
    expected = reference_attn_half(layer, step)[1]
    run_attn_half(Context(kernels, 2), layer, step)
    assert_close(step.delta, expected)


def test_what_lies_behind_a_context_is_not_seen(kernels):
    torch.manual_seed(0)
    sizes = Sizes()
    layer, step = RandomLayer(sizes), RandomStep(sizes, [Sequence(37, 1), Sequence(37, 4)])
    expected = reference_attn_half(layer, step)[1]
    unseen = torch.ones(step.cache.shape[1], dtype=torch.bool)
    for index in range(2):
        unseen[step.context_slots(index)] = False
    step.cache[:, unseen] = float("nan")
    run_attn_half(Context(kernels, 2), layer, step)
    assert_close(step.delta, expected)


@pytest.mark.parametrize("is_int8", [False, True], ids=["bfloat16", "int8"])
def test_a_row_does_not_depend_on_the_others(kernels, is_int8):
    sizes, answers = Sizes(is_int8=is_int8), []
    for others in ([], [Sequence(400, 1)] * 12, [Sequence(3, 9), Sequence(0, 60)]):
        torch.manual_seed(0)
        layer = RandomLayer(sizes)
        step = RandomStep(sizes, [Sequence(300, 1)], num_positions=1024)
        row = step.hidden[0].clone(), step.delta[0].clone(), step.cache[:, step.context_slots(0)]
        mixed = RandomStep(sizes, [*others, Sequence(300, 1)], num_positions=1024)
        mixed.hidden[-1], mixed.delta[-1] = row[0], row[1]
        mixed.cache[:, mixed.context_slots(len(others))] = row[2]
        mixed.cos, mixed.sin = step.cos, step.sin
        run_attn_half(Context(kernels, 2), layer, mixed)
        answers.append(mixed.delta[-1])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
