"""`KvCache`: keys and values of all layers in blocks, addressed as vLLM addresses them.

A slot is block * block_size + offset. Block 0 is vLLM's null block: nothing in it is ever
read unmasked, so padding is written there. Keys and values of one head are contiguous by slot,
so that a block of a head is gathered in one copy.

Shape legend: H KV heads held here, D head size, R rows, W blocks per row, T new tokens.
"""

import torch

from rufus_serve.kernels import huge_pages
from rufus_serve.units import GIB

_MAX_BLOCKS = 1 << 17
_PREFIX_CACHE_FACTOR = 4


def block_bytes(
    *, num_layers: int, block_size: int, num_kv_heads: int, head_size: int, dtype: torch.dtype
) -> int:
    """Bytes that one block takes, over all layers."""
    return num_layers * block_size * 2 * num_kv_heads * head_size * dtype.itemsize


def blocks_per_sequence(max_model_len: int, block_size: int) -> int:
    """Blocks of the longest sequence."""
    return -(-max_model_len // block_size)


def num_blocks_that_fit(kv_cache_gib: float, bytes_per_block: int, *, num_useful: int) -> int:
    """Blocks in `kv_cache_gib`, null block included.

    At most some times the `num_useful` that all sequences can fill, the rest being left for
    cached prefixes, since the scheduler keeps an object per block.
    """
    most = min(_PREFIX_CACHE_FACTOR * num_useful + 1, _MAX_BLOCKS)
    return min(int(kv_cache_gib * GIB) // bytes_per_block, most)


class KvCache:
    """The cache of one follower; used by the thread that runs steps."""

    def __init__(
        self,
        num_layers: int,
        *,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._num_kv_heads = num_kv_heads
        self._head_size = head_size
        slots = (num_layers, 2 * num_kv_heads, num_blocks * block_size, head_size)
        cache = huge_pages.zeros(slots, dtype)
        self._slots = tuple(cache)
        blocks = (*slots[:2], num_blocks, block_size * head_size)
        self._blocks = tuple(cache.view(blocks))
        self._gathered: dict[int, torch.Tensor] = {}

    @property
    def layers(self) -> tuple[torch.Tensor, ...]:
        """Each layer's [2H, num_blocks * block_size, D], keys first."""
        return self._slots

    def write(self, layer: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Store `keys_values` [2H, T, D], keys first, at `slots` [T]."""
        self._slots[layer].index_copy_(1, slots, keys_values)

    def read(
        self, layer: int, blocks: torch.Tensor, *, num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks` [R * W], each [H * R, W * block_size, D].

        They lie in a buffer that the next call overwrites.
        """
        buffer = self._buffer(blocks.numel())
        torch.index_select(self._blocks[layer], 1, blocks, out=buffer)
        keys_values = buffer.view(2, self._num_kv_heads * num_rows, -1, self._head_size)
        return keys_values[0], keys_values[1]

    def _buffer(self, num_gathered: int) -> torch.Tensor:
        buffer = self._gathered.get(num_gathered)
        if buffer is None:
            source = self._blocks[0]
            buffer = source.new_empty(source.shape[0], num_gathered, source.shape[2])
            self._gathered[num_gathered] = buffer
        return buffer
