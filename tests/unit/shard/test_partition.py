"""Shares of every group size put together are the whole model."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.errors import ModelError
from rufus_serve.shard.partition import Partition, Span, even_share


@st.composite
def groups(draw):
    """All followers' shares of some model."""
    num_kv_heads, group_size = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    num_q_heads = num_kv_heads * group_size
    num_nodes = draw(st.integers(1, min(num_q_heads, 24)))
    intermediate_size = draw(st.integers(num_nodes, 500))
    return [
        Partition(
            num_q_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            intermediate_size=intermediate_size,
            vocab_size=977,
            num_nodes=num_nodes,
            node_rank=node_rank,
        )
        for node_rank in range(num_nodes)
    ]


def share(q, kv, nodes, rank):
    return Partition(
        num_q_heads=q, num_kv_heads=kv, intermediate_size=100, vocab_size=100,
        num_nodes=nodes, node_rank=rank,
    )  # fmt: skip


def assert_tiles(spans, total):
    assert spans[0].start == 0
    assert spans[-1].stop == total
    for one, after in pairwise(spans):
        assert one.stop == after.start
    assert all(span.size > 0 for span in spans)


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_even_shares_tile_the_whole_and_differ_by_one_at_most(total, num_parts):
    shares = [even_share(total, num_parts, index) for index in range(num_parts)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(total))
    sizes = {share.size for share in shares}
    assert max(sizes) - min(sizes) <= 1


@given(groups())
def test_every_query_head_is_held_once(group):
    assert_tiles([part.q_heads for part in group], group[0].num_q_heads)


@given(groups())
def test_vocabulary_rows_are_held_once(group):
    assert_tiles([part.vocab_rows for part in group], group[0].vocab_size)


@given(groups())
def test_query_heads_find_their_kv_head_beside_them(group):
    for part in group:
        per_kv_head = part.num_q_heads // part.num_kv_heads
        for index in range(part.q_heads.size):
            wanted = (part.q_heads.start + index) // per_kv_head
            assert part.kv_heads.start + index // part.group_size == wanted
        assert part.group_size * part.kv_heads.size == part.q_heads.size


@given(groups())
def test_every_kv_head_is_held_and_only_copied_when_there_are_too_few(group):
    held = [head for part in group for head in range(part.kv_heads.start, part.kv_heads.stop)]
    assert set(held) == set(range(group[0].num_kv_heads))
    if len(group) <= group[0].num_kv_heads:
        assert len(held) == group[0].num_kv_heads


@given(groups())
def test_exactly_one_follower_adds_biases(group):
    assert sum(part.adds_bias for part in group) == 1


@given(groups())
def test_a_follower_knows_the_shares_of_the_others(group):
    assert [group[-1].of_node(rank) for rank in range(len(group))] == group


@pytest.mark.parametrize(
    ("nodes", "q_heads", "kv_heads"),
    [
        (1, [(0, 9)], [(0, 3)]),
        (2, [(0, 6), (6, 9)], [(0, 2), (2, 3)]),
        (3, [(0, 3), (3, 6), (6, 9)], [(0, 1), (1, 2), (2, 3)]),
        (4, [(0, 2), (2, 3), (3, 6), (6, 9)], [(0, 1), (0, 1), (1, 2), (2, 3)]),
    ],
)
def test_nine_query_and_three_kv_heads_are_split_along_kv_groups(nodes, q_heads, kv_heads):
    parts = [share(9, 3, nodes, rank) for rank in range(nodes)]
    assert [part.q_heads for part in parts] == [Span(*span) for span in q_heads]
    assert [part.kv_heads for part in parts] == [Span(*span) for span in kv_heads]


def test_more_followers_than_query_heads_are_refused_with_the_numbers():
    with pytest.raises(ModelError, match="followers <= query heads must hold, but 5 > 4"):
        share(4, 2, 5, 0)


def test_query_heads_that_kv_heads_do_not_divide_are_refused_with_the_numbers():
    with pytest.raises(ModelError, match="9 % 2 = 1"):
        share(9, 2, 1, 0)


def test_a_span_counts_in_other_units():
    assert Span(2, 5).times(64) == Span(128, 320)


@given(groups())
def test_mlp_columns_are_held_once(group):
    assert_tiles([part.mlp_columns for part in group], group[0].intermediate_size)
