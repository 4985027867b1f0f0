import msgspec
import pytest

from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.memory import (
    LINE_PADDING,
    core_memory,
    core_weights,
    kv_bytes_per_token,
    scratch_bytes,
)
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B
from rufus_serve.plan.tensor_parallel import tensor_parallel

TRN1 = instance_named("trn1.32xlarge")


def test_one_core_holds_the_whole_model():
    tp = tensor_parallel(LLAMA3_8B, 1)
    assert core_weights(LLAMA3_8B, tp, "bfloat16").total == 2 * LLAMA3_8B.num_params


def test_cores_without_replication_hold_the_model_once_but_for_norms():
    tp = tensor_parallel(LLAMA3_8B, 8)
    held = 8 * core_weights(LLAMA3_8B, tp, "bfloat16").total
    norms = 7 * 2 * (2 * 32 + 1) * 4096
    assert held == 2 * LLAMA3_8B.num_params + norms


def test_replicated_kv_heads_add_their_projections():
    once = 8 * core_weights(LLAMA3_8B, tensor_parallel(LLAMA3_8B, 8), "bfloat16").linear
    four_times = 32 * core_weights(LLAMA3_8B, tensor_parallel(LLAMA3_8B, 32), "bfloat16").linear
    kv_projections = 2 * 2 * 4096 * 8 * 128 * 32
    assert four_times - once == 3 * kv_projections


def test_kv_bytes_of_a_token_grow_with_the_degree_once_heads_are_replicated():
    per_node = {
        degree: degree * kv_bytes_per_token(LLAMA3_70B, tensor_parallel(LLAMA3_70B, degree), "int8")
        for degree in (4, 8, 32, 64)
    }
    assert per_node[4] == per_node[8] == 80 * 8 * 128 * 2 * 2
    assert per_node[32] == 4 * per_node[8]
    assert per_node[64] == 64 * 128 * 2 * 80 * 2


def test_int8_halves_linear_layers_and_nothing_else():
    tp = tensor_parallel(LLAMA3_70B, 32)
    plain, small = (core_weights(LLAMA3_70B, tp, kind) for kind in ("bfloat16", "int8"))
    assert 2 * small.linear == plain.linear
    assert (small.embedding, small.other) == (plain.embedding, plain.other)


def test_every_core_holds_a_slice_of_every_expert():
    shape = msgspec.structs.replace(
        LLAMA3_8B, model_type="mixtral", num_experts=8, experts_per_token=2, expert_size=14336,
        num_moe_layers=32,
    )  # fmt: skip
    weights = core_weights(shape, tensor_parallel(shape, 8), "bfloat16")
    assert 8 * weights.expert * weights.num_experts == 2 * 8 * 32 * 3 * 4096 * 14336


def test_a_budget_adds_up_and_counts_the_padding_of_kv_lines():
    memory = core_memory(
        TRN1, weights=4 << 30, scratch=2 << 30, kv_per_token=40_960, tokens=8192, rows=8
    )
    assert memory.kv == 8 * 40_960 * (8192 + LINE_PADDING)
    assert memory.free == (16 << 30) - (6 << 30) - memory.kv
    assert memory.max_sequences == (10 << 30) // memory.kv_per_sequence


@pytest.mark.parametrize("more", [0, 1])
def test_it_fits_up_to_the_last_sequence(more):
    sizes = {"weights": 4 << 30, "scratch": 2 << 30, "kv_per_token": 40_960, "tokens": 8192}
    most = core_memory(TRN1, **sizes, rows=1).max_sequences
    assert core_memory(TRN1, **sizes, rows=most + more).fits is (more == 0)


def test_weights_beyond_the_device_leave_no_room():
    memory = core_memory(TRN1, weights=20 << 30, scratch=0, kv_per_token=1, tokens=1, rows=1)
    assert (memory.fits, memory.max_sequences) == (False, 0)


def test_scratch_grows_with_graphs_prompts_and_rows():
    base = {"prefill_tokens": 512, "rows": 8, "num_graphs": 10}
    least = scratch_bytes(TRN1, LLAMA3_8B, **base)
    for name, value in base.items():
        assert scratch_bytes(TRN1, LLAMA3_8B, **{**base, name: 2 * value}) > least
