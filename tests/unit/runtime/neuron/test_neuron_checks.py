from pathlib import Path

import pytest
from msgspec.structs import replace
from neuron_sized import configured

from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.model.config_json import ConfigJson
from rufus_serve.model.shape import shape_of
from rufus_serve.runtime.neuron.checks import (
    check_attention_groups,
    check_candidates,
    check_quantizing,
    check_sharding,
)
from rufus_serve.runtime.neuron.topology import Topology

SIZES = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 768, "vocab_size": 256,
    "intermediate_size": 64 * 9, "max_position_embeddings": 512,
}  # fmt: skip


def model(heads, kv_heads, **more):
    raw = SIZES | {"num_attention_heads": heads, "num_key_value_heads": kv_heads, **more}
    return shape_of(ConfigJson(Path("config.json"), raw))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree"),
    [(9, 3, 1), (9, 3, 3), (9, 3, 6), (9, 3, 9), (8, 2, 4), (10, 2, 4), (8, 4, 2), (64, 8, 64)],
)
def test_degrees_that_divide_or_replicate_kv_heads_pass(heads, kv_heads, degree):
    check_sharding(model(heads, kv_heads), Topology(degree, 1, 0))


@pytest.mark.parametrize(("heads", "kv_heads", "degree"), [(9, 3, 2), (12, 4, 3), (64, 8, 12)])
def test_other_degrees_are_refused(heads, kv_heads, degree):
    with pytest.raises(ModelError, match=f"tensor parallel degree {degree} .* {kv_heads} KV heads"):
        check_sharding(model(heads, kv_heads), Topology(degree, 1, 0))


def test_the_refusal_names_the_equation_and_the_nearest_degrees():
    with pytest.raises(ModelError) as caught:
        check_sharding(model(12, 4), Topology(3, 2, 0))
    text = str(caught.value)
    assert "degree 6 (nodes 3 x cores_per_node 2) % 4 KV heads = 2 and 4 % 6 = 4" in text
    assert text.endswith("possible degrees near: 4 and 8")


@pytest.mark.parametrize(("vocab", "count"), [(256, 257), ((1 << 24) + 1, 64)])
def test_candidates_that_float32_does_not_hold_or_a_row_does_not_have_are_refused(vocab, count):
    with pytest.raises(ModelError, match=f"device_candidates {count} of a vocabulary of {vocab}"):
        check_candidates(model(8, 8, vocab_size=vocab), count)
    check_candidates(model(8, 8, vocab_size=vocab), 0)


def test_an_intermediate_size_that_does_not_divide_is_refused():
    with pytest.raises(ModelError, match=r"intermediate_size 100 % .* = 4, must be 0"):
        check_sharding(model(8, 8, intermediate_size=100), Topology(8, 1, 0))


@pytest.mark.parametrize(
    ("kv_heads", "degree", "cp", "dp"),
    [(8, 64, 16, 1), (8, 64, 16, 8), (8, 64, 8, 8), (8, 64, 1, 8), (8, 32, 1, 4)],
)
def test_attention_groups_that_divide_or_replicate_kv_heads_pass(kv_heads, degree, cp, dp):
    check_attention_groups(model(64, kv_heads), Topology(degree, 1, 0), cp_degree=cp, dp_degree=dp)


@pytest.mark.parametrize(
    ("kv_heads", "degree", "cp", "dp", "equation"),
    [
        (3, 6, 3, 1, r"cp_degree 3: .*6 / 3 = 2 ranks; 2 % 3 KV heads = 2 and 3 % 2 = 1"),
        (3, 6, 3, 3, "cp_degree 3"),
        (8, 32, 1, 8, r"8 KV heads / 32 = 1 in prefill but 8 / \(32 / 8\) = 2 in decode"),
    ],
)
def test_attention_groups_that_cannot_share_kv_heads_are_refused(
    kv_heads, degree, cp, dp, equation
):
    with pytest.raises(ModelError, match=equation):
        check_attention_groups(
            model(24, kv_heads), Topology(degree, 1, 0), cp_degree=cp, dp_degree=dp
        )


def test_nxdi_cpu_is_one_process_per_rank():
    config = configured("contiguous", neuron={"mode": "nxdi-cpu", "cores_per_node": 3}, nodes=2)
    with pytest.raises(ConfigError, match="set cores_per_node to 1 and nodes to 6"):
        Topology.of(config, 0, 1)


def test_ranks_of_a_node_follow_those_of_the_one_before():
    topology = Topology(num_nodes=4, cores_per_node=32, node_rank=3)
    assert (topology.tp_degree, topology.start_rank_id) == (128, 96)
    assert topology.spans_hosts


def test_two_followers_share_a_hosts_cores():
    cores = [Topology(4, 16, rank, 2).first_core for rank in range(4)]
    assert cores == [0, 16, 0, 16]
    assert not Topology(2, 16, 0, 2).spans_hosts


def test_groups_share_a_hosts_cores():
    of_one_node = [Topology(1, 16, 0, 2, group).first_core for group in range(2)]
    assert of_one_node == [0, 16]
    of_two_nodes = [
        Topology(2, 8, rank, 4, group).first_core for group in (0, 1) for rank in (0, 1)
    ]
    assert of_two_nodes == [0, 8, 16, 24]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"quantization": "gptq"}, r"already \(gptq\)"), ({"num_experts": 8}, "with 8 experts")],
)
def test_what_cannot_be_quantized_is_refused(change, words):
    check_quantizing(model(24, 3))
    with pytest.raises(ModelError, match=words):
        check_quantizing(replace(model(24, 3), **change))
