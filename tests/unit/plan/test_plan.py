import msgspec
import pytest

from rufus_serve.config.checks import conflicts
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.plan.advice import advice
from rufus_serve.plan.hardware import INSTANCES, instance_named
from rufus_serve.plan.plan import make_plan, smallest_fit
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B, LLAMA31_405B
from rufus_serve.plan.request import PlanRequest


def asked(shape=LLAMA3_70B, *, instance="trn1.32xlarge", num_nodes=1, **options) -> PlanRequest:
    hardware = instance_named(instance)
    fields = {
        "cores_per_node": hardware.num_cores, "max_model_len": 8192, "max_num_seqs": 2, **options
    }  # fmt: skip
    return PlanRequest(shape=shape, instance=hardware, num_nodes=num_nodes, **fields)


def said(request: PlanRequest, level: str) -> str:
    return "\n".join(item.text for item in advice(make_plan(request)) if item.level == level)


def test_the_table_holds_the_five_instance_types():
    assert [instance.name for instance in INSTANCES] == [
        "trn1.2xlarge", "trn1.32xlarge", "trn1n.32xlarge", "inf2.48xlarge", "trn2.48xlarge"
    ]  # fmt: skip


def test_a_core_of_trn1_has_16_gib_and_410_gb_per_s():
    instance = instance_named("trn1.32xlarge")
    assert instance.core_hbm_bytes == 16 << 30
    assert instance.core_bytes_per_ms == pytest.approx(410e6)


def test_an_unknown_instance_type_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'p5.48xlarge' is not known; known are trn1.2xlarge"):
        instance_named("p5.48xlarge")


def test_70b_in_bfloat16_fits_one_trn1():
    assert make_plan(asked(max_num_seqs=8)).fits


def test_405b_needs_more_than_one_trn1_and_int8_needs_fewer():
    assert not make_plan(asked(LLAMA31_405B)).fits
    plain, small = (
        smallest_fit(asked(LLAMA31_405B, weights=weights)) for weights in ("bfloat16", "int8")
    )
    assert plain.request.num_nodes == 4
    assert small.request.num_nodes < plain.request.num_nodes


def test_a_draft_model_takes_its_weights_and_its_share_of_every_sequence():
    alone, both = make_plan(asked()), make_plan(asked(draft=LLAMA3_8B, draft_model="small"))
    draft = make_plan(asked(LLAMA3_8B)).memory
    assert both.memory.weights == alone.memory.weights + draft.weights
    assert both.memory.kv_per_token == alone.memory.kv_per_token + draft.kv_per_token
    assert both.memory.max_sequences < alone.memory.max_sequences
    assert both.start_up.load_sharded_s > alone.start_up.load_sharded_s
    config = ServeConfig(model="m", **both.request.settings)
    assert (config.speculation.method, config.speculation.draft_model) == ("fused", "small")
    assert conflicts(config) == []


def test_the_capacity_table_agrees_with_the_budget():
    plan = make_plan(asked(max_num_seqs=8))
    at_length = next(item for item in plan.capacity if item.context == 8192)
    assert at_length.sequences == plan.memory.max_sequences
    counts = [item.sequences for item in plan.capacity]
    assert counts == sorted(counts, reverse=True)


def test_replicas_are_recommended_when_one_node_is_enough():
    text = said(asked(num_nodes=2), "recommendation")
    assert "Run 2 replicas of one node, not one group of 2" in text
    assert "all-reduces cross the network" in text


def test_smaller_groups_are_recommended_when_they_are_enough():
    text = said(asked(LLAMA31_405B, num_nodes=4, weights="int8", max_num_seqs=8), "recommendation")
    assert "Run 2 replicas of 2 nodes" in text


def test_the_fewest_nodes_are_confirmed():
    request = smallest_fit(asked(LLAMA31_405B)).request
    assert "the fewest that hold this load" in said(request, "recommendation")


def test_what_does_not_fit_is_told_what_would():
    text = said(asked(LLAMA31_405B), "recommendation")
    assert "does not fit" in text
    assert "would hold it" in text


def test_what_no_number_of_nodes_holds_is_told_to_shrink():
    text = said(asked(LLAMA31_405B, instance="inf2.48xlarge", cores_per_node=16), "recommendation")
    assert "No number of inf2.48xlarge nodes holds it" in text
    assert "int8" in text


def test_too_many_sequences_are_told_how_many_fit():
    most = make_plan(asked()).memory.max_sequences
    text = said(asked(max_num_seqs=10 * most), "recommendation")
    assert "lower max_num_seqs to" in text


@pytest.mark.parametrize(("rows", "warned"), [(2, False), (4, True), (8, True)])
def test_70b_on_trn1_is_warned_of_batch_four(rows, warned):
    assert (
        "not to compile on Trn1 at batch 4" in said(asked(max_num_seqs=rows), "warning")
    ) is warned


def test_the_batch_warning_is_for_trn1_and_70b_only():
    for request in (asked(LLAMA3_8B, max_num_seqs=8), asked(instance="trn2.48xlarge")):
        assert "batch 4" not in said(request, "warning")


def test_a_host_too_small_to_compile_is_warned_of():
    small = asked(LLAMA3_8B, instance="trn1.2xlarge", max_num_seqs=1)
    assert "would be killed without a message" in said(small, "warning")
    assert "killed" not in said(asked(LLAMA3_8B), "warning")


def test_several_nodes_are_marked_as_never_measured():
    assert "never measured" in said(asked(num_nodes=2), "warning")
    assert "never measured" not in said(asked(), "warning")


def test_a_quantized_checkpoint_is_warned_of():
    shape = msgspec.structs.replace(LLAMA3_8B, quantization="fp8")
    assert "quantized (fp8)" in said(asked(shape), "warning")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked(cores_per_node=33), "has 32 cores, 33 were asked"),
        (asked(instance="trn1.2xlarge", num_nodes=2), "has no EFA"),
        (asked(instance="inf2.48xlarge", num_nodes=2), "has no EFA"),
        (asked(max_model_len=8193), "beyond the model's 8192 positions"),
        (asked(max_model_len=1024), "prompt of 2048 tokens does not fit"),
        (asked(cores_per_node=12), "12 % 8 = 4"),
        (asked(instance="inf2.48xlarge"), "must divide intermediate_size, but 28672 % 24 = 16"),
    ],
)
def test_impossible_requests_are_refused_with_the_values(request_, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(request_)


def test_graphs_are_counted_from_the_buckets():
    plan = make_plan(asked(max_num_seqs=4, max_model_len=2048))
    assert plan.request.compiled.prefill == (64, 128, 256, 512, 1024, 2048)
    assert plan.request.compiled.context == (128, 256, 512, 1024, 2048)
    assert plan.start_up.num_graphs == 6 + 5


def test_the_settings_are_those_of_a_valid_configuration():
    request = asked(num_nodes=2, max_model_len=3000)
    config = ServeConfig(model="m", **request.settings)
    assert (config.nodes, config.neuron.cores_per_node) == (2, 32)
    assert config.buckets.prefill == (64, 128, 256, 512, 1024, 2048, 3000)


def test_a_prompt_is_padded_to_its_bucket():
    exact, shorter = (make_plan(asked(prompt_tokens=n)).first_token_ms for n in (4096, 2049))
    assert exact == shorter


def test_decode_is_estimated_for_several_numbers_of_rows_at_full_length():
    plan = make_plan(asked(max_num_seqs=6))
    assert [item.rows for item in plan.decode] == [1, 2, 4, 6]
    assert {item.context for item in plan.decode} == {8192}


def test_attention_groups_of_one_node_each_hold_half_the_kv_cache_of_a_sequence():
    whole = make_plan(asked(num_nodes=2))
    halves = make_plan(asked(num_nodes=2).with_attention_on_nodes())
    assert halves.memory.kv_per_sequence * 2 == whole.memory.kv_per_sequence
    assert halves.decode[-1].max_ms < whole.decode[-1].max_ms
    assert f"{halves.memory.max_sequences} sequences instead of" in said(asked(num_nodes=2), "note")


def test_what_a_step_brings_to_the_host_is_told_beside_its_time():
    # 8 rows of 128,256 float32 logits, or of 256 values and ids.
    told = said(asked(max_num_seqs=8), "note")
    assert "8 rows brings 4.1 MB of logits to the host, about 2.2 to 3.0 ms" in told
    assert "neuron.device_candidates 256 brings 16 kB" in told


def test_attention_cut_in_two_ways_is_held_twice():
    equal = make_plan(asked(num_nodes=2).with_attention_on_nodes())
    assert equal.weights.prefill_attention == 0
    request = asked(num_nodes=2, attention_dp_degree=2)
    # Of a core of 64: 1 query and 1 KV head of 128, by 8192 hidden, in 80 layers, twice, bfloat16.
    assert make_plan(request).weights.prefill_attention == 2 * 2 * 8192 * 2 * 128 * 80
    assert "each core keeps both" in said(request, "note")


def test_degrees_that_do_not_divide_are_refused_with_the_equation():
    with pytest.raises(ConfigError, match=r"% neuron.cp_degree 3 = 1, must be 0"):
        make_plan(asked(num_nodes=2, cp_degree=3))


def test_a_recovery_takes_loading_a_call_to_each_graph_and_a_process():
    small, large = (make_plan(asked(shape)).start_up for shape in (LLAMA3_8B, LLAMA3_70B))
    assert small.recover_s < large.recover_s
    for start in (small, large):
        assert start.recover_s > start.load_sharded_s + start.warm_up_s > start.load_sharded_s
    few = make_plan(asked(max_model_len=2048)).start_up
    assert few.warm_up_s < make_plan(asked(max_model_len=8192)).start_up.warm_up_s


@pytest.mark.parametrize(("cores", "warned"), [(2, False), (8, True), (16, False), (32, False)])
def test_numbers_of_cores_that_nobody_tried_on_trn1_are_warned_of(cores, warned):
    said_of = said(asked(LLAMA3_8B, cores_per_node=cores), "warning")
    assert (f"{cores} cores per node" in said_of) is warned


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "float32"])
def test_the_settings_are_those_of_the_planned_number_format(weights):
    settings = ServeConfig(model="planned", **asked(weights=weights).settings)
    assert settings.weights == ("int8" if weights == "int8" else "auto")
    assert settings.dtype == ("float32" if weights == "float32" else "bfloat16")


def test_quantizing_takes_the_checkpoint_in_float32_and_half_the_shards():
    wide, narrow = (make_plan(asked(weights=weights)).start_up for weights in ("bfloat16", "int8"))
    more = narrow.compile_host_bytes - wide.compile_host_bytes
    assert 0.9 * LLAMA3_70B.num_params < more < 1.1 * LLAMA3_70B.num_params
