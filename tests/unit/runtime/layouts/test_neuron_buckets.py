from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.errors import RuntimeStepError
from rufus_serve.runtime.layouts.buckets import first_gap, plan_prefill, strict_bucket

PREFILL, PREFIX = (64, 128), (128, 256, 384)


@pytest.mark.parametrize(("length", "bucket"), [(1, 16), (15, 16), (16, 32), (63, 64), (64, 64)])
def test_a_bucket_is_larger_than_the_length_but_for_the_last(length, bucket):
    assert strict_bucket(length, (16, 32, 64)) == bucket


def test_a_length_beyond_the_last_bucket_is_refused():
    with pytest.raises(RuntimeStepError, match="65 tokens exceed the largest compiled bucket 64"):
        strict_bucket(65, (16, 32, 64))


def plan(computed, length, prefill=PREFILL, prefix=PREFIX):
    return plan_prefill(computed, length, prefill=prefill, prefix=prefix)


def test_a_prompt_without_a_hit_takes_the_smallest_bucket():
    assert [(s.prefix, s.size) for s in plan(0, 64)] == [(0, 64)]
    assert [(s.prefix, s.size) for s in plan(0, 65)] == [(0, 128)]


def test_a_hit_reads_a_full_prefix_bucket_and_computes_the_rest_again():
    (segment,) = plan(160, 200)
    assert (segment.prefix, segment.size, segment.computed, segment.end) == (128, 128, 160, 200)


def test_a_long_prompt_takes_several_calls():
    assert [(s.prefix, s.size, s.end) for s in plan(0, 300)] == [
        (0, 128, 128), (128, 128, 256), (256, 128, 300)
    ]  # fmt: skip


@st.composite
def bucket_sets(draw):
    prefill = sorted(draw(st.sets(st.sampled_from([32, 64, 128, 256, 512]), min_size=1)))
    prefix = sorted(draw(st.sets(st.sampled_from([128, 256, 384, 512, 768, 1024]))))
    return tuple(prefill), tuple(prefix)


@given(bucket_sets(), st.data())
def test_a_plan_computes_every_new_token_once_over_full_prefixes(buckets, data):
    prefill, prefix = buckets
    gap = first_gap(1200, prefill=prefill, prefix=prefix)
    length = data.draw(st.integers(1, 1200 if gap is None else gap))
    computed = data.draw(st.integers(0, length - 1))
    segments = plan(computed, length, prefill, prefix)
    assert segments[0].computed == computed
    assert segments[-1].end == length
    for before, after in pairwise(segments):
        assert before.end == after.computed
    for segment in segments:
        assert segment.prefix in (0, *prefix)
        assert segment.prefix <= segment.computed < segment.end <= segment.prefix + segment.size
        assert segment.prefix == 0 or segment.size >= 128


@given(bucket_sets())
def test_a_gap_is_where_no_plan_goes_on(buckets):
    prefill, prefix = buckets
    gap = first_gap(1200, prefill=prefill, prefix=prefix)
    if gap is not None:
        with pytest.raises(RuntimeStepError, match="no compiled prefill goes on"):
            plan(gap, gap + 1200, prefill, prefix)
