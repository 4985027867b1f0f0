"""`StepInputs`: a step's arrays as tensors, padded to the buckets it runs in.

Padding is harmless by construction: padded tokens have id 0 and position 0, are written to the
null block, see one key, and their outputs are dropped.

Shape legend: R rows and T new tokens (both padded), C context (padded), W blocks per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Phase, StepRequest
from rufus_serve.shard.buckets import Buckets


@dataclass(frozen=True)
class StepInputs:
    """One padded step."""

    is_prefill: bool
    num_rows: int
    """R."""
    token_ids: torch.Tensor
    """[T] ids of the new tokens."""
    positions: torch.Tensor
    """[T] their positions."""
    slots: torch.Tensor
    """[T] where their keys and values go."""
    blocks: torch.Tensor
    """[R * W] blocks that hold the context."""
    context_size: int
    """C = W * block_size."""
    last_tokens: torch.Tensor
    """Each row's last token among the T, padded rows left out: those whose logits are computed."""


def pad_step(
    step: StepRequest, buckets: Buckets, *, block_size: int, num_blocks: int, vocab_size: int
) -> StepInputs:
    """Pad `step` to its buckets.

    Raises:
        RuntimeStepError: it fits no bucket, or its arrays contradict each other.
    """
    _check_shapes(step, block_size)
    _check_range(step, "token id", [step.token_ids], limit=vocab_size)
    slot_blocks = step.slot_mapping // block_size
    _check_range(step, "block", [step.block_table, slot_blocks], limit=num_blocks)
    num_new = step.num_new_tokens
    is_prefill = step.phase is Phase.PREFILL
    num_rows = step.num_rows if is_prefill else buckets.decode_rows(num_new)
    num_padded = buckets.prefill_size(num_new) if is_prefill else num_rows
    context_size = buckets.context_size(int(step.context_lens.max()))
    width = -(-context_size // block_size)
    first, ends = step.num_computed_tokens, step.context_lens
    positions = np.concatenate([np.arange(*row) for row in zip(first, ends, strict=True)])
    contexts = np.cumsum(ends) - ends
    new = np.repeat(contexts, ends - first) + positions if is_prefill else slice(None)
    return StepInputs(
        is_prefill=is_prefill,
        num_rows=num_rows,
        token_ids=_padded(step.token_ids[new], num_padded),
        positions=_padded(positions, num_padded),
        slots=_padded(step.slot_mapping, num_padded),
        blocks=_padded_table(step.block_table, num_rows, width),
        context_size=width * block_size,
        last_tokens=torch.from_numpy(np.cumsum(ends - first, dtype=np.int64) - 1),
    )


def _padded(values: np.ndarray, size: int) -> torch.Tensor:
    padded = np.zeros(size, dtype=np.int64)
    padded[: values.shape[0]] = values
    return torch.from_numpy(padded)


def _padded_table(table: np.ndarray, num_rows: int, width: int) -> torch.Tensor:
    padded = np.zeros((num_rows, width), dtype=np.int64)
    kept = table[:, :width]
    padded[: kept.shape[0], : kept.shape[1]] = kept
    return torch.from_numpy(padded).view(-1)


def _check_shapes(step: StepRequest, block_size: int) -> None:
    num_rows, num_new = step.num_rows, step.num_new_tokens
    is_prefill = step.phase is Phase.PREFILL
    shapes_fit = (
        step.num_computed_tokens.shape == step.context_lens.shape
        and (step.num_computed_tokens < step.context_lens).all()
        and num_new == int((step.context_lens - step.num_computed_tokens).sum()) > 0
        and (is_prefill or num_new == num_rows)
        and step.token_ids.shape[0] == (step.context_lens.sum() if is_prefill else num_rows)
        and num_rows == step.block_table.shape[0]
        and step.block_table.shape[1] * block_size >= int(step.context_lens.max())
    )
    if not shapes_fit:
        raise RuntimeStepError(
            f"step {step.step_id} is malformed: {step.phase.value} of {num_rows} rows, "
            f"{step.token_ids.shape[0]} token ids, {num_new} new tokens, context lengths "
            f"{step.context_lens.tolist()}, computed {step.num_computed_tokens.tolist()}, "
            f"block table {list(step.block_table.shape)} of blocks of {block_size}"
        )


def _check_range(step: StepRequest, what: str, arrays: Sequence[np.ndarray], *, limit: int) -> None:
    """Refuse indices by which a step would read or write elsewhere."""
    lowest = min(int(array.min()) for array in arrays)
    highest = max(int(array.max()) for array in arrays)
    if lowest < 0 or highest >= limit:
        raise RuntimeStepError(
            f"step {step.step_id} names a {what} outside of 0..{limit - 1}: "
            f"lowest {lowest}, highest {highest}"
        )
