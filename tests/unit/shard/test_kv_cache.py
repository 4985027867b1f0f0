"""What is written by slot is read by block."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.shard.kv_cache import KvCache, block_bytes, num_blocks_that_fit

NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, HEAD_SIZE = 9, 4, 2, 3


def make_cache(num_layers=2):
    return KvCache(
        num_layers, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, num_kv_heads=NUM_HEADS,
        head_size=HEAD_SIZE, dtype=torch.float32,
    )  # fmt: skip


def rows_of(slots):
    """Keys [H, T, D] and values that name their head, slot and kind."""
    numbers = slots[None, :, None] + 1000 * torch.arange(2 * NUM_HEADS)[:, None, None]
    return numbers.float().expand(-1, -1, HEAD_SIZE)


@given(st.permutations(range(NUM_BLOCKS)), st.integers(1, 3), st.data())
def test_blocks_in_any_order_come_back_in_that_order(order, num_rows, data):
    cache = make_cache()
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(0))
    cache.write(1, slots, rows_of(slots))
    width = data.draw(st.integers(1, NUM_BLOCKS // num_rows))
    table = torch.tensor(order[: num_rows * width]).view(num_rows, width)
    keys, values = cache.read(1, table.view(-1), num_rows=num_rows)
    within = torch.arange(BLOCK_SIZE)
    for head in range(NUM_HEADS):
        for row in range(num_rows):
            expected = (table[row, :, None] * BLOCK_SIZE + within).view(-1)
            at = head * num_rows + row
            assert (keys[at, :, 0] == 1000 * head + expected).all()
            assert (values[at, :, -1] == 1000 * (NUM_HEADS + head) + expected).all()


def test_layers_are_apart():
    cache = make_cache()
    slots = torch.tensor([5])
    cache.write(0, slots, rows_of(slots))
    keys, _ = cache.read(1, torch.tensor([1]), num_rows=1)
    assert not keys.any()


def test_a_block_takes_keys_and_values_of_all_layers():
    size = block_bytes(
        num_layers=30, block_size=32, num_kv_heads=3, head_size=64, dtype=torch.bfloat16
    )
    assert size == 30 * 32 * 2 * 3 * 64 * 2


def test_blocks_are_as_many_as_memory_holds_but_no_more_than_useful():
    assert num_blocks_that_fit(1.0, 1 << 20, num_useful=10_000) == 1024
    assert num_blocks_that_fit(1.0, 1 << 20, num_useful=16) == 4 * 16 + 1
