"""Compiled shapes and step requests of a few tokens."""

import numpy as np

from rufus_serve.config.schema import ServeConfig
from rufus_serve.protocol.messages import Phase, StepRequest
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape


def configured(layout, **settings):
    neuron = {"kv_layout": layout, "cores_per_node": 1, "mode": "nxdi-cpu"}
    defaults = {
        "contiguous": {"max_model_len": 64, "buckets": {"prefill": [16, 64]}},
        "block": {"max_model_len": 512, "buckets": {"prefill": [64, 128]}},
    }[layout]
    given = {"model": "m", "runtime": "neuron", "max_num_seqs": 4, "neuron": neuron}
    return ServeConfig(**given | defaults | settings)


def shaped(layout, **settings):
    return CompiledShape.of(configured(layout, **settings), 2048)


def ints(*values):
    return np.array(values, dtype=np.int32)


def prefill(tokens, blocks, *, computed=0, block_size=64, **fields):
    slots = [blocks[i // block_size] * block_size + i % block_size
             for i in range(computed, len(tokens))]  # fmt: skip
    return StepRequest(
        step_id=7, epoch=1, phase=Phase.PREFILL, token_ids=ints(*tokens),
        num_computed_tokens=ints(computed), context_lens=ints(len(tokens)),
        block_table=ints(*blocks).reshape(1, -1), slot_mapping=ints(*slots), **fields,
    )  # fmt: skip


def decode(tokens, positions, tables, *, block_size=64):
    slots = [table[p // block_size] * block_size + p % block_size
             for p, table in zip(positions, tables, strict=True)]  # fmt: skip
    return StepRequest(
        step_id=8, epoch=1, phase=Phase.DECODE, token_ids=ints(*tokens),
        num_computed_tokens=ints(*positions), context_lens=ints(*positions) + 1,
        block_table=np.array(tables, dtype=np.int32), slot_mapping=ints(*slots),
    )  # fmt: skip
