import pytest
from neuron_sized import configured, shaped

from rufus_serve.errors import ConfigError
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape, block_tile


def test_in_the_contiguous_layout_a_block_is_a_whole_line():
    shape = shaped("contiguous")
    assert (shape.block_size, shape.num_blocks, shape.seq_len) == (64, 5, 64)
    assert shape.prefill == (16, 64)
    assert shape.context == (64,)


def test_without_max_model_len_a_line_is_as_long_as_the_largest_prefill():
    shape = shaped("contiguous", max_model_len=0, buckets={"prefill": [64, 512]})
    assert shape.max_model_len == 512
    assert CompiledShape.of(configured("contiguous", max_model_len=0), 32).max_model_len == 32


def test_a_line_longer_than_the_largest_prefill_is_refused():
    with pytest.raises(ConfigError, match=r"largest buckets.prefill 64 < max_model_len 65"):
        shaped("contiguous", max_model_len=65)


def drafted(count, **settings):
    return shaped(
        "contiguous", speculation={"method": "ngram", "num_speculative_tokens": count}, **settings
    )


def test_a_line_has_room_for_drafts_behind_the_longest_sequence():
    shape = drafted(3)
    assert (shape.seq_len, shape.max_model_len, shape.tokens_per_row) == (64, 61, 4)
    info = shape.of_info()
    assert (info["decode_batch_buckets"], info["multi_token_decode"]) == ((16,), True)
    assert info["drafts_are_free"]
    assert not shaped("contiguous").of_info()["multi_token_decode"]


def test_graphs_that_draft_themselves_are_given_one_token_a_row():
    speculation = {"method": "fused", "draft_model": "d", "num_speculative_tokens": 3}
    shape = shaped("contiguous", speculation=speculation)
    assert (shape.max_model_len, shape.tokens_per_row, shape.inputs_per_row) == (61, 4, 1)
    info = shape.of_info()
    assert (info["decode_batch_buckets"], info["chosen_tokens"]) == ((4,), 4)
    assert not info["multi_token_decode"]
    assert drafted(3).of_info()["chosen_tokens"] == 0


@pytest.mark.parametrize(
    ("count", "reason"), [(15, "prefill bucket 16 = 1"), (63, "bucket 64 = 1"), (64, "65 > max_mo")]
)
def test_drafts_that_cannot_be_told_from_a_prefill_or_have_no_room_are_refused(count, reason):
    with pytest.raises(ConfigError, match=reason):
        drafted(count)


def test_buckets_end_at_the_longest_sequence():
    shape = shaped("contiguous", max_model_len=200, buckets={"prefill": [64, 128, 512]})
    assert shape.prefill == (64, 128, 200)
    assert shape.context == (128, 200)


def test_the_block_layout_has_a_prefix_bucket_wherever_a_full_prefill_ends():
    shape = shaped("block")
    assert shape.prefix == (128, 256, 384)
    assert shape.context == (128, 256, 512)
    assert shape.num_blocks == 4 * 16 + 1


def test_prefix_buckets_double_where_one_prefill_holds_any_prompt():
    assert shaped("block", buckets={"prefill": [128, 512]}).prefix == (128, 256)


def test_sequences_are_whole_blocks():
    shape = shaped("block", max_model_len=500)
    assert (shape.max_model_len, shape.seq_len, shape.context[-1]) == (500, 512, 512)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"block_size": 48, "max_model_len": 480}, r"prefix bucket 128 % block_size 48 = 32"),
        ({"block_size": 4, "max_model_len": 64}, r"block_size 4 % 8 = 4, must be 0"),
        ({"buckets": {"prefill": [64]}}, "no prefill goes on from 64 tokens"),
        ({"buckets": {"prefill": [128], "decode_batch": [2, 4]}}, "decode_batch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_equation(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        shaped("block", **settings)


def test_configured_prefix_buckets_are_taken_and_checked():
    neuron = {"kv_layout": "block", "neuron_config": {"prefix_buckets": [384, 128]}}
    with pytest.raises(ConfigError, match="no prefill goes on from 256 tokens"):
        shaped("block", neuron=neuron)
    shape = shaped("block", neuron=neuron, buckets={"prefill": [128, 256]})
    assert shape.prefix == (128, 384)


@pytest.mark.parametrize(
    ("blocks", "tile"), [(1, 128), (16, 8), (100, 2), (127, 2), (128, 1), (300, 1)]
)
def test_a_block_is_cut_so_that_a_sequence_has_128_tiles(blocks, tile):
    assert block_tile(blocks) == tile
