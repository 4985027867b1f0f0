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
    reference_mlp_half,
    run_mlp_half,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.builds(
        Sizes,
        hidden=st.sampled_from([16, 48, 96, 160]),
        inner=st.integers(1, 200),
        has_bias=st.booleans(),
        is_int8=st.booleans(),
    ),
    num_tokens=st.one_of(st.integers(1, 14), st.integers(40, 110)),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_answers_as_torch_does_for_any_shape(kernels, sizes, num_tokens, num_threads, seed):
    torch.manual_seed(seed)
    layer, step = RandomLayer(sizes), RandomStep(sizes, [Sequence(0, num_tokens)])
    hidden, answer = reference_mlp_half(layer, step)
    run_mlp_half(Context(kernels, num_threads), layer, step)
    assert_close(step.hidden, hidden)
    assert_close(step.delta, answer)


def test_gates_of_any_size_are_finite(kernels):
    torch.manual_seed(0)
    layer, step = RandomLayer(Sizes(inner=64)), RandomStep(Sizes(), [Sequence(0, 4)])
    layer.mlp_norm *= 1000
    answer = reference_mlp_half(layer, step)[1]
    run_mlp_half(Context(kernels, 1), layer, step)
    assert_close(step.delta, answer)


def test_threads_that_come_late_find_their_work_done(kernels):
    torch.manual_seed(0)
    sizes = Sizes(hidden=96, inner=200)
    layer, crowd = RandomLayer(sizes), Context(kernels, 16)
    for _ in range(50):
        step = RandomStep(sizes, [Sequence(0, 3)])
        answer = reference_mlp_half(layer, step)[1]
        run_mlp_half(crowd, layer, step)
        assert_close(step.delta, answer)
