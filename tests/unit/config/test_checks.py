import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.config.checks import conflicts


def messages(**settings) -> list[str]:
    return [each.message for each in conflicts(ServeConfig(model="m", **settings))]


def neuron(nodes: int = 1, *, rows: int = 8, **settings) -> list[str]:
    return messages(runtime="neuron", nodes=nodes, max_num_seqs=rows, neuron=settings)


def test_the_defaults_agree_with_each_other():
    assert messages() == []
    assert messages(runtime="neuron") == []


@pytest.mark.parametrize(
    ("settings", "equation"),
    [
        (
            {"max_model_len": 300, "buckets": {"context": [128, 256]}},
            "largest buckets.context 256 < max_model_len 300",
        ),
        (
            {"max_num_seqs": 8, "buckets": {"decode_batch": [1, 4]}},
            "largest buckets.decode_batch 4 < max_num_seqs 8",
        ),
        (
            {"block_size": 48, "buckets": {"context": [96, 128]}},
            "buckets.context 128 % block_size 48 = 32",
        ),
        (
            {"max_model_len": 100, "num_blocks": 4, "block_size": 32},
            "num_blocks 4 < 5 = ceil(max_model_len 100 / block_size 32) + 1 null block",
        ),
        (
            {"timeouts": {"heartbeat_s": 3, "heartbeat_lost_s": 5}},
            "timeouts.heartbeat_lost_s 5 < 2 x timeouts.heartbeat_s 3",
        ),
        (
            {"recovery": {"backoff_s": 2, "max_backoff_s": 1}},
            "recovery.max_backoff_s 1 < recovery.backoff_s 2",
        ),
        (
            {"runtime": "neuron", "recovery": {"deadline_s": 600}},
            "recovery.deadline_s 600 < timeouts.load_s 1800 + timeouts.warm_up_s 1800",
        ),
        ({"artifacts": {"required": True}}, "artifacts.required is true"),
    ],
)
def test_the_equation_that_fails_is_shown(settings, equation: str):
    found = messages(**settings)
    assert len(found) == 1
    assert found[0].startswith(equation)


def test_the_smallest_number_of_blocks_that_holds_a_sequence_is_accepted():
    assert messages(max_model_len=100, num_blocks=5, block_size=32) == []


def test_the_tensor_parallel_degree_must_be_a_multiple_of_both_other_degrees():
    assert neuron(2, cp_degree=16, attention_dp_degree=4) == []
    assert neuron(3, cores_per_node=2, cp_degree=4) == [
        "tensor parallel degree 6 (nodes 3 x cores_per_node 2) % neuron.cp_degree 4 = 2, must be 0"
    ]


def test_context_parallelism_is_a_multiple_of_attention_data_parallelism():
    (message,) = neuron(cp_degree=2, attention_dp_degree=4)
    assert message.startswith("neuron.cp_degree 2 % neuron.attention_dp_degree 4 = 2, must be 0")


def test_attention_data_parallelism_may_come_alone_but_not_with_kv_blocks():
    assert neuron(attention_dp_degree=4) == []
    (message,) = neuron(attention_dp_degree=4, kv_layout="block")
    assert message.startswith("neuron.attention_dp_degree 4 with neuron.kv_layout block")


def test_the_cpu_mode_of_nxd_inference_takes_hybrid_parallelism():
    degrees = {"cp_degree": 2, "attention_dp_degree": 2}
    assert neuron(4, mode="nxdi-cpu", cores_per_node=1, **degrees) == []


@pytest.mark.parametrize("name", ["cp_degree", "attention_dp_degree"])
def test_groups_of_eight_over_64_ranks_are_a_mesh_that_trn1_has_not(name):
    (message,) = neuron(2, **{name: 8})
    assert message.startswith(f"neuron.{name} 8 at tensor parallel degree 64")
    assert neuron(2, **{name: 4}) == []
    assert neuron(64, mode="nxdi-cpu", cores_per_node=1, **{name: 8}) == []


def test_a_prompts_tokens_are_divided_evenly():
    buckets = {"prefill": [128, 1030]}
    (message,) = messages(runtime="neuron", buckets=buckets, neuron={"cp_degree": 4})
    assert message.startswith("buckets.prefill 1030 % neuron.cp_degree 4 = 2, must be 0")
    parallel = {"neuron_config": {"sequence_parallel_enabled": True}}
    (message,) = messages(runtime="neuron", buckets=buckets, neuron=parallel)
    assert message.startswith("buckets.prefill 1030 % tensor parallel degree")


def test_decode_rows_are_divisible_by_the_attention_groups():
    (message,) = neuron(cp_degree=4, attention_dp_degree=4, rows=6)
    assert message.startswith("max_num_seqs 6 % neuron.attention_dp_degree 4 = 2, must be 0")
    (message,) = messages(
        runtime="neuron",
        buckets={"decode_batch": [2, 8]},
        neuron={"cp_degree": 4, "attention_dp_degree": 4},
    )
    assert message.startswith("buckets.decode_batch 2 % neuron.attention_dp_degree 4 = 2")


def test_a_contiguous_kv_layout_prefills_a_whole_prompt_in_one_step():
    (message,) = messages(runtime="neuron", max_model_len=2048)
    assert message.startswith("largest buckets.prefill 512 < max_model_len 2048")
    assert messages(runtime="neuron", max_model_len=2048, neuron={"kv_layout": "block"}) == []
    assert messages(runtime="cpu", max_model_len=2048) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"async_scheduling": False}, "async_scheduling false"),
        ({"runtime": "neuron", "neuron": {"kv_layout": "block"}}, "with block tables"),
        ({"cpu": {"strict_neuron": True}, "neuron": {"kv_layout": "block"}}, "with block tables"),
    ],
)
def test_speculation_says_where_it_cannot_be(settings, message):
    (found,) = messages(speculation={"method": "ngram"}, **settings)
    assert message in found
    assert messages(speculation={"method": "ngram"}, runtime="neuron") == []


def test_speculation_compares_no_fewer_tokens_than_it_needs():
    lookup = {"prompt_lookup_min": 4, "prompt_lookup_max": 3}
    (found,) = messages(speculation=lookup | {"method": "ngram"})
    assert "prompt_lookup_min 4 > speculation.prompt_lookup_max 3" in found
    assert messages(speculation=lookup) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"neuron": {"cp_degree": 2}}, "weights int8 with neuron.cp_degree 2"),
        ({"neuron": {"attention_dp_degree": 2}}, "weights int8 with neuron.attention_dp_degree 2"),
        (
            {"neuron": {"neuron_config": {"save_sharded_checkpoint": False}}},
            "weights int8 with neuron_config.save_sharded_checkpoint false",
        ),
        (
            {"neuron": {"mode": "nxdi-cpu", "cores_per_node": 1}, "dtype": "bfloat16"},
            "weights int8 and dtype bfloat16 with neuron.mode nxdi-cpu",
        ),
    ],
)
def test_what_nxd_inference_cannot_quantize_is_refused(settings, why):
    assert messages(runtime="neuron", **settings) == []
    (message,) = messages(runtime="neuron", weights="int8", **settings)
    assert message.startswith(why)


FUSED = {"method": "fused", "draft_model": "d"}


@pytest.mark.parametrize("method", ["fused", "eagle"])
def test_a_draft_model_goes_with_graphs_that_choose_tokens(method):
    speculation = FUSED | {"method": method}
    assert messages(runtime="neuron", speculation=speculation) == []
    (found,) = messages(runtime="neuron", speculation=speculation | {"draft_model": ""})
    assert f"speculation.method {method} without speculation.draft_model" in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "cpu"}, "with runtime: the graphs that draft and choose tokens are NxD"),
        ({"cpu": {"strict_neuron": True}, "runtime": "cpu"}, "use runtime neuron, or method ngram"),
        ({"neuron": {"kv_layout": "block"}}, "with neuron.kv_layout: a fused decode over block"),
        ({"neuron": {"device_candidates": 64}}, "with neuron.device_candidates: its graphs choose"),
        ({"neuron": {"cp_degree": 2}}, "with neuron.cp_degree: the draft's attention"),
        (
            {"neuron": {"cp_degree": 2, "attention_dp_degree": 2}},
            "with neuron.attention_dp_degree: the draft's attention",
        ),
        ({"weights": "int8"}, "with weights: the draft would need a quantized checkpoint"),
        ({"vllm_args": {"logits_processors": ["a:B"]}}, "logits_processors would see no logits"),
        ({"async_scheduling": False}, "async_scheduling false"),
    ],
)
def test_fused_speculation_says_what_it_excludes(settings, message):
    found = messages(**{"runtime": "neuron", "speculation": FUSED} | settings)
    assert any(message in each for each in found), found


@pytest.mark.parametrize("method", ["none", "ngram"])
def test_a_draft_model_that_nothing_would_use_is_refused(method):
    (found,) = messages(speculation={"method": method, "draft_model": "d"})
    assert "only methods fused and eagle have a draft model" in found
