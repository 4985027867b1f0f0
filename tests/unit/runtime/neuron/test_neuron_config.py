import pytest
from neuron_sized import configured

from rufus_serve.errors import ConfigError
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.runtime.neuron.neuron_config import (
    accepted_fields,
    neuron_config_fields,
    refuse_unknown_fields,
)
from rufus_serve.runtime.neuron.topology import Topology


class Base:
    def __init__(self, **kwargs):
        self.one = kwargs.pop("one", 1)
        self._more(kwargs)

    def _more(self, kwargs):
        if "two" in kwargs:
            self.two = kwargs.pop("two")


class Derived(Base):
    def __init__(self, three=None, **kwargs):
        self.four = kwargs.pop("attn_kernel_enabled", False)
        super().__init__(**kwargs)


def fields(layout="contiguous", rank=1, **extra):
    neuron = {"kv_layout": layout, "cores_per_node": 4, "neuron_config": extra}
    config = configured(layout, nodes=2, neuron=neuron)
    shape = CompiledShape.of(config, 2048)
    return neuron_config_fields(config, shape, Topology.of(config, rank, 1), "bfloat16")


def test_all_nodes_form_one_group_of_which_each_has_its_ranks():
    found = fields(rank=1)
    assert (found["tp_degree"], found["world_size"]) == (8, 8)
    assert (found["start_rank_id"], found["local_ranks_size"]) == (4, 4)


def test_the_contiguous_layout_masks_the_lines_left_out():
    found = fields()
    assert found["apply_seq_ids_mask"] is True
    assert found["ctx_batch_size"] == 1
    assert "is_block_kv_layout" not in found


def test_the_block_layout_comes_with_prefix_caching():
    found = fields("block")
    assert found["is_block_kv_layout"]
    assert found["is_prefix_caching"]
    assert found["prefix_buckets"] == [128, 256, 384]
    assert "apply_seq_ids_mask" not in found


def test_graphs_that_find_candidates_leave_the_output_layer_sharded_and_keep_logits_apart():
    config = configured("contiguous", neuron={"device_candidates": 64})
    shape = CompiledShape.of(config, 2048)
    found = neuron_config_fields(config, shape, Topology.of(config, 0, 1), "bfloat16")
    assert found["on_device_sampling_config"] == {"global_topk": 64}
    assert found["output_logits"] is True


def test_drafts_take_a_decode_of_as_many_tokens_and_one():
    config = configured("contiguous", speculation={"method": "ngram", "num_speculative_tokens": 3})
    shape = CompiledShape.of(config, 2048)
    found = neuron_config_fields(config, shape, Topology.of(config, 0, 1), "bfloat16")
    assert found["speculation_length"] == 4
    assert "speculation_length" not in fields()
    with pytest.raises(ConfigError, match=r"use speculation\.num_speculative_tokens"):
        fields(speculation_length=4)


@pytest.mark.parametrize("method", ["fused", "eagle"])
def test_fused_graphs_choose_tokens_greedily(method):
    config = configured(
        "contiguous",
        speculation={"method": method, "num_speculative_tokens": 3, "draft_model": "draft"},
    )
    shape = CompiledShape.of(config, 2048)
    found = neuron_config_fields(config, shape, Topology.of(config, 0, 1), "bfloat16")
    assert (found["enable_fused_speculation"], found["speculation_length"]) == (True, 4)
    assert found["on_device_sampling_config"] == {"do_sample": False}
    assert found.get("enable_eagle_speculation", False) is (method == "eagle")
    for name in ("enable_fused_speculation", "enable_eagle_speculation", "is_eagle_draft"):
        with pytest.raises(ConfigError, match=r"use speculation\.method"):
            fields(**{name: True})


def test_the_leader_samples():
    assert "on_device_sampling_config" not in fields()
    with pytest.raises(ConfigError, match=r"on_device_sampling_config is not possible: the leader"):
        fields(on_device_sampling_config={"top_k": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow_input_truncation", True),
        ("async_mode", True),
        ("chunked_prefill_config", {"max_num_seqs": 1}),
        ("token_tree_config", {"0": ["1"]}),
        ("kv_cache_quant", True),
        ("lora_config", {"max_loras": 1}),
        ("padding_side", "left"),
        ("pp_degree", 2),
        ("token_generation_batches", [1]),
        ("windowed_context_encoding_size", 128),
    ],
)
def test_features_that_would_change_the_calls_are_refused_with_the_reason(name, value):
    with pytest.raises(ConfigError, match=f"neuron_config.{name} is not possible: "):
        fields(**{name: value})


def test_fields_that_follow_from_settings_name_the_setting():
    with pytest.raises(ConfigError, match="seq_len is set by rufus-serve; use max_model_len"):
        fields(seq_len=4096)
    with pytest.raises(ConfigError, match="apply_seq_ids_mask is set by rufus-serve"):
        fields(apply_seq_ids_mask=False)


def test_other_fields_pass_through():
    assert fields(fused_qkv=True)["fused_qkv"] is True


def test_accepted_fields_are_those_of_the_class_and_its_bases():
    assert accepted_fields(Derived) == {"one", "two", "three", "attn_kernel_enabled"}


def test_an_unknown_field_is_refused_with_the_nearest_name():
    refuse_unknown_fields({"one": 1, "two": 2}, Derived)
    with pytest.raises(
        ConfigError, match=r"attn_kernel is not a field.*mean attn_kernel_enabled\?"
    ):
        refuse_unknown_fields({"attn_kernel": True}, Derived)


@pytest.mark.parametrize(("target", "logical"), [("trn1", 1), ("inf2", 1), ("trn2", 2)])
def test_the_device_is_part_of_what_is_compiled(target, logical):
    neuron = {"cores_per_node": 4, "target": target}
    config = configured("contiguous", neuron=neuron)
    shape = CompiledShape.of(config, 2048)
    found = neuron_config_fields(config, shape, Topology.of(config, 0, 1), "bfloat16")
    assert (found["target"], found["logical_nc_config"]) == (target, logical)


@pytest.mark.parametrize("name", ["target", "logical_nc_config"])
def test_the_device_is_a_setting_of_its_own(name):
    with pytest.raises(ConfigError, match=f"{name} is set by rufus-serve; use neuron.target"):
        fields(**{name: 1})


def test_weights_of_8_bits_are_quantized_per_output_but_for_the_output_layer():
    config = configured("contiguous", weights="int8")
    shape = CompiledShape.of(config, 2048)
    found = neuron_config_fields(config, shape, Topology.of(config, 0, 1), "bfloat16")
    assert found["quantized"] is True
    assert found["quantization_type"] == "per_channel_symmetric"
    assert found["modules_to_not_convert"] == ["lm_head"]
    assert "quantized" not in fields()


@pytest.mark.parametrize("name", ["quantized", "quantization_dtype", "quantized_checkpoints_path"])
def test_quantization_is_a_setting_of_its_own(name):
    with pytest.raises(ConfigError, match=f"{name} is set by rufus-serve; use weights"):
        fields(**{name: "x"})
