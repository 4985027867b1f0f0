from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.leader.engine.group_shape import GroupShape
from rufus_serve.protocol.messages import RuntimeInfo

INFO = RuntimeInfo(
    model_type="llama",
    num_layers=2,
    num_kv_heads=2,
    head_size=8,
    vocab_size=100,
    dtype="float32",
    block_size=16,
    num_blocks=65,
    max_model_len=1024,
    prefill_buckets=(64, 256),
    decode_batch_buckets=(1, 8),
    context_buckets=(1024,),
)


def vllm_config(max_model_len: int) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=max_model_len),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        cache_config=SimpleNamespace(enable_prefix_caching=True, block_size=32),
    )


def shape(info: RuntimeInfo = INFO, **settings: Any) -> GroupShape:
    return GroupShape.of(info, ServeConfig(model="m", **settings))


def test_vllm_may_use_the_blocks_that_followers_hold_and_no_more() -> None:
    assert shape().num_blocks == 65
    assert shape(num_blocks=40).num_blocks == 40
    assert shape(num_blocks=1000).num_blocks == 65


def test_one_prefill_bucket_of_new_tokens_joins_the_decodes_of_a_step() -> None:
    config = vllm_config(1024)
    shape().apply_to(config)
    assert config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens == 256 + 8
    assert config.cache_config.block_size == 16


def test_without_segments_a_context_must_fit_the_largest_prefill_bucket() -> None:
    config = vllm_config(1024)
    shape(msgspec.structs.replace(INFO, segmented_prefill=False)).apply_to(config)
    assert config.model_config.max_model_len == 256
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.max_num_batched_tokens == 256 + 8


def test_several_prefills_between_decodes_take_as_many_tokens() -> None:
    for strict, tokens in ((True, 3 * 256), (False, 256)):
        config = vllm_config(1024)
        settings = {"cpu": {"strict_neuron": strict}, "neuron": {"max_prefills_per_decode": 3}}
        shape(**settings).apply_to(config)
        assert config.scheduler_config.max_num_batched_tokens == tokens + 8


def test_running_requests_may_bring_their_drafts_as_well() -> None:
    able = msgspec.structs.replace(INFO, multi_token_decode=True)
    config = vllm_config(1024)
    shape(able, speculation={"method": "ngram", "num_speculative_tokens": 3}).apply_to(config)
    assert config.scheduler_config.max_num_batched_tokens == 256 + 8 * (1 + 3)


def test_followers_that_draft_themselves_may_bring_as_many_tokens() -> None:
    able = msgspec.structs.replace(INFO, chosen_tokens=4)
    config = vllm_config(1024)
    fused = {"method": "fused", "draft_model": "d", "num_speculative_tokens": 3}
    shape(able, speculation=fused).apply_to(config)
    assert config.scheduler_config.max_num_batched_tokens == 256 + 8 * (1 + 3)
    assert "another shape" in shape(able).mismatch(INFO)


def test_speculation_is_refused_by_name_where_followers_decode_one_token_a_row() -> None:
    with pytest.raises(ConfigError, match=r"speculation\.method"):
        shape(speculation={"method": "ngram"}).apply_to(vllm_config(1024))


def test_prefix_caching_ends_where_followers_cannot_do_it() -> None:
    config = vllm_config(1024)
    shape(msgspec.structs.replace(INFO, prefix_caching=False)).apply_to(config)
    assert not config.cache_config.enable_prefix_caching


def test_a_cache_too_small_for_one_request_is_refused_with_the_length_that_fits() -> None:
    with pytest.raises(ConfigError, match="set max_model_len to 624 or less"):
        shape(num_blocks=40).apply_to(vllm_config(1024))


def test_the_null_block_is_not_counted_as_memory() -> None:
    shape(num_blocks=65).check_memory(1024)
    with pytest.raises(ConfigError):
        shape(num_blocks=64).check_memory(1024)


def test_a_later_group_of_another_shape_is_no_replacement() -> None:
    assert shape().mismatch(INFO) == ""
    assert shape().mismatch(msgspec.structs.replace(INFO, num_blocks=70)) == ""
    assert "KV blocks" in shape().mismatch(msgspec.structs.replace(INFO, num_blocks=64))
    assert "shape" in shape().mismatch(msgspec.structs.replace(INFO, head_size=16))


def test_a_later_group_may_gain_prompt_logprobs_and_not_lose_them() -> None:
    telling = msgspec.structs.replace(INFO, prompt_logprobs=True)
    assert shape().mismatch(telling) == ""
    assert "prompt_logprobs" in shape(telling).mismatch(INFO)
