"""Steps that run every bucket once, touching nothing but the null block."""

from collections.abc import Iterator

import numpy as np

from rufus_serve.protocol.messages import Phase, StepRequest
from rufus_serve.shard.buckets import Buckets


def warm_up_steps(buckets: Buckets, *, epoch: int, block_size: int) -> Iterator[StepRequest]:
    """A prefill and a decode of each size, each in the smallest context that holds it.

    Larger contexts run the same kernels on longer arrays; there is nothing to compile.
    """
    for num_tokens in buckets.prefill:
        yield _step(Phase.PREFILL, num_tokens, epoch=epoch, block_size=block_size)
    for num_rows in buckets.decode_batch:
        yield _step(Phase.DECODE, num_rows, epoch=epoch, block_size=block_size)


def _step(phase: Phase, num_new: int, *, epoch: int, block_size: int) -> StepRequest:
    is_prefill = phase is Phase.PREFILL
    num_rows, context_len = (1, num_new) if is_prefill else (num_new, 1)
    width = -(-context_len // block_size)
    return StepRequest(
        step_id=0,
        epoch=epoch,
        phase=phase,
        token_ids=np.zeros(num_new, np.int32),
        num_computed_tokens=np.zeros(num_rows, np.int32),
        context_lens=np.full(num_rows, context_len, np.int32),
        block_table=np.zeros((num_rows, width), np.int32),
        slot_mapping=np.zeros(num_new, np.int32),
    )
