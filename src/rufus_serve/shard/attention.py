"""`Attention`: new tokens' queries over the KV cache, for all layers of one step.

Shape legend: T new tokens, R rows, H KV heads held here, G query heads per KV head held here,
D head size, C context.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.shard.kv_cache import KvCache
from rufus_serve.shard.step_inputs import StepInputs

_FEW_KEYS = 512
"""Keys of all rows up to which a decode is faster with torch's fused attention: measured on
EPYC in bfloat16, 29 against 48 us at 256 keys, but 98 against 70 us at 1024."""


class Attention:
    """The attention of one step; masks are made once and shared by the layers."""

    def __init__(
        self, step: StepInputs, cache: KvCache, *, windows: Sequence[int], group_size: int
    ) -> None:
        self._step = step
        self._cache = cache
        self._windows = windows
        self._group_size = group_size
        self._masks: dict[int, torch.Tensor] = {}

    def run(self, layer: int, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """Store `keys_values` [T, 2H, D], then attend with `queries` [T, H * G, D]; same shape.

        The result is flat: [T, H * G * D].
        """
        step, cache = self._step, self._cache
        cache.write(layer, step.slots, keys_values.transpose(0, 1))
        keys, values = cache.read(layer, step.blocks, num_rows=step.num_rows)
        attend = self._prefill if step.is_prefill else self._decode
        return attend(queries, keys, values, self._mask(self._windows[layer], queries))

    def _prefill(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """One row of T queries. KV heads are the batch, so that keys need no repetition."""
        num_tokens, num_heads, head_size = queries.shape
        shape = (num_heads // self._group_size, self._group_size, -1, head_size)
        grouped = queries.transpose(0, 1).reshape(shape)
        context = (*shape[:2], self._step.context_size, head_size)
        heads = F.scaled_dot_product_attention(
            grouped,
            keys.unsqueeze(1).expand(context),
            values.unsqueeze(1).expand(context),
            attn_mask=mask,
        )
        return heads.reshape(num_heads, num_tokens, head_size).transpose(0, 1).flatten(1)

    def _decode(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """One query per row. A KV head's G query heads are the rows of one small matrix."""
        num_rows, num_heads, head_size = queries.shape
        by_row = (num_rows, num_heads // self._group_size, self._group_size, head_size)
        by_head = (by_row[1], num_rows, self._group_size, head_size)
        grouped = queries.reshape(by_row).transpose(0, 1).reshape(-1, self._group_size, head_size)
        if num_rows * self._step.context_size <= _FEW_KEYS:
            heads = F.scaled_dot_product_attention(
                grouped[None], keys[None], values[None], attn_mask=mask[None]
            )
        else:
            scores = torch.baddbmm(mask, grouped, keys.transpose(1, 2), alpha=head_size**-0.5)
            heads = torch.bmm(torch.softmax(scores, dim=-1), values)
        return heads.view(by_head).transpose(0, 1).reshape(num_rows, -1)

    def _mask(self, window: int, queries: torch.Tensor) -> torch.Tensor:
        """What is added to scores: 0 where a query sees a key, else minus infinity."""
        mask = self._masks.get(window)
        if mask is None:
            mask = self._masks[window] = self._make_mask(window, queries)
        return mask

    def _make_mask(self, window: int, queries: torch.Tensor) -> torch.Tensor:
        """[1, 1, T, C] in a prefill, [H * R, G, C] in a decode."""
        positions = self._step.positions.unsqueeze(1)
        key_positions = torch.arange(self._step.context_size)
        hidden = key_positions > positions
        if window:
            hidden |= key_positions <= positions - window
        mask = queries.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        if self._step.is_prefill:
            return mask[None, None]
        num_rows, context_size = mask.shape
        num_kv_heads = queries.shape[1] // self._group_size
        shape = (num_kv_heads, num_rows, self._group_size, context_size)
        return mask[None, :, None].expand(shape).reshape(-1, *shape[2:])
