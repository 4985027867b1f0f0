import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rufus_serve.errors import ConfigError
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B
from rufus_serve.plan.tensor_parallel import divides, tensor_parallel


def with_heads(q_heads: int, kv_heads: int, *, columns: int = 46_080):
    return msgspec.structs.replace(
        LLAMA3_8B, num_q_heads=q_heads, num_kv_heads=kv_heads, intermediate_size=columns
    )


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "degree"),
    [(9, 3, 6), (9, 3, 9), (10, 2, 4), (8, 4, 2), (9, 3, 1), (9, 3, 3)],
)
def test_degrees_that_nxd_inference_ran_with_are_accepted(q_heads, kv_heads, degree):
    assert tensor_parallel(with_heads(q_heads, kv_heads), degree).degree == degree


@pytest.mark.parametrize(("q_heads", "kv_heads", "degree"), [(9, 3, 2), (12, 4, 3)])
def test_degrees_that_nxd_inference_failed_with_are_refused(q_heads, kv_heads, degree):
    with pytest.raises(ConfigError, match=f"{degree} % {kv_heads} = {degree % kv_heads}"):
        tensor_parallel(with_heads(q_heads, kv_heads), degree)


def test_the_refusal_names_both_remainders_and_a_number_of_cores_that_works():
    with pytest.raises(ConfigError) as refused:
        tensor_parallel(with_heads(9, 3), 64, num_nodes=2)
    message = str(refused.value)
    assert "64 % 3 = 1" in message
    assert "3 % 64 = 3" in message
    assert message.endswith("use --cores-per-node 30")
    tensor_parallel(with_heads(9, 3), 60, num_nodes=2)


def test_kv_heads_are_replicated_up_to_the_degree():
    tp = tensor_parallel(LLAMA3_70B, 64)
    assert (tp.kv_heads_per_core, tp.kv_replication, tp.q_heads_per_core) == (1, 8, 1)


def test_query_heads_are_padded_to_a_multiple_of_the_degree():
    tp = tensor_parallel(with_heads(10, 2), 4)
    assert (tp.q_heads_per_core, tp.q_padding) == (3, 1.2)


@given(kv=st.integers(1, 16), group=st.integers(1, 16), degree=st.integers(1, 256))
def test_all_heads_find_a_core(kv, group, degree):
    shape = with_heads(kv * group, kv, columns=64 * degree)
    assume(divides(shape, degree))
    tp = tensor_parallel(shape, degree)
    assert tp.q_heads_per_core * degree >= kv * group
    assert tp.kv_heads_per_core * degree == pytest.approx(tp.kv_replication * kv)
    assert tp.kv_replication >= 1


def test_columns_that_do_not_divide_are_refused_with_the_remainder():
    with pytest.raises(ConfigError, match="must divide intermediate_size, but 100 % 8 = 4"):
        tensor_parallel(with_heads(8, 8, columns=100), 8)


def test_columns_of_experts_count_where_all_layers_have_experts():
    shape = msgspec.structs.replace(
        with_heads(8, 8, columns=100), num_experts=4, experts_per_token=2, expert_size=64,
        num_moe_layers=LLAMA3_8B.num_layers,
    )  # fmt: skip
    assert divides(shape, 8)
    assert not divides(msgspec.structs.replace(shape, expert_size=66), 8)
