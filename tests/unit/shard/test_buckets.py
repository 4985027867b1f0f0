"""A step runs in the smallest bucket that holds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.config.schema import BucketConfig
from rufus_serve.errors import RuntimeStepError
from rufus_serve.shard.buckets import resolve_buckets, smallest_holding

ascending = st.sets(st.integers(1, 5000), min_size=1).map(sorted)


@given(ascending, st.integers(1, 6000))
def test_the_smallest_holding_bucket_is_chosen(sizes, count):
    if count > sizes[-1]:
        with pytest.raises(RuntimeStepError, match=f"{count} rows exceed"):
            smallest_holding(sizes, count, what="rows")
        return
    chosen = smallest_holding(sizes, count, what="rows")
    assert chosen in sizes
    assert chosen >= count
    assert not any(count <= size < chosen for size in sizes)


@pytest.mark.parametrize(
    ("max_num_seqs", "max_model_len", "rows", "context"),
    [
        (1, 64, (1,), (64,)),
        (8, 1024, (1, 2, 4, 8), (128, 256, 512, 1024)),
        (6, 1000, (1, 2, 4, 6), (128, 256, 512, 1000)),
    ],
)
def test_empty_settings_become_powers_of_two(max_num_seqs, max_model_len, rows, context):
    buckets = resolve_buckets(BucketConfig(), max_rows=max_num_seqs, max_model_len=max_model_len)
    assert buckets.decode_batch == rows
    assert buckets.context == context


@given(ascending, ascending, ascending, st.integers(1, 64), st.integers(1, 5000))
def test_whatever_is_configured_every_legal_step_fits(prefill, rows, context, seqs, length):
    config = BucketConfig(prefill=tuple(prefill), decode_batch=tuple(rows), context=tuple(context))
    buckets = resolve_buckets(config, max_rows=seqs, max_model_len=length)
    for sizes in (buckets.prefill, buckets.decode_batch, buckets.context):
        assert list(sizes) == sorted(set(sizes))
    assert buckets.decode_rows(seqs) == seqs
    assert buckets.context_size(length) == length
    assert max(buckets.prefill) == min(max(prefill), length)
