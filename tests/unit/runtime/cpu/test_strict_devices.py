"""A device's rules, each by a call that breaks it."""

import numpy as np
import pytest

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import RuntimeStepError
from rufus_serve.runtime.cpu.strict.block import BlockDevice
from rufus_serve.runtime.cpu.strict.contiguous import ContiguousDevice
from rufus_serve.runtime.layouts.block import BlockLayout
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.runtime.layouts.contiguous import ContiguousLayout

ROWS = 4


def shaped(layout, **settings):
    given = {
        "contiguous": {"max_model_len": 64, "buckets": {"prefill": [16, 64], "context": [32, 64]}},
        "block": {
            "max_model_len": 1024,
            "buckets": {"prefill": [64, 128], "context": [256, 1024]},
        },
    }[layout]
    config = ServeConfig(
        model="m", max_num_seqs=ROWS, neuron={"kv_layout": layout},
        cpu={"strict_neuron": True}, **given | settings,
    )  # fmt: skip
    return CompiledShape.of(config, 2048)


LINES = ContiguousDevice(shaped("contiguous"))
BLOCKS = BlockDevice(shaped("block"))


def ints(values):
    return np.array(values, dtype=np.int32)


def column(values):
    return ints(values).reshape(-1, 1)


def sampling(rows):
    return np.ones((rows, 3), np.float32)


def line_prefill(count, *, positions=None, lines=(0,), **more):
    positions = range(count) if positions is None else positions
    arguments = {
        "input_ids": np.tile(np.arange(count, dtype=np.int32), (len(lines), 1)),
        "position_ids": np.tile(ints(positions), (len(lines), 1)),
        "seq_ids": ints(lines),
        "sampling_params": sampling(len(lines)),
    }
    return arguments | more


def line_decode(positions, lines, **more):
    arguments = {
        "input_ids": column([9] * len(lines)),
        "position_ids": column(positions),
        "seq_ids": ints(lines),
        "sampling_params": sampling(len(lines)),
    }
    return arguments | more


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (line_prefill(8, lines=(0, 1)), "2 rows in a prefill: a graph holds one prompt"),
        (line_prefill(8, positions=range(4, 12)), "goes on from position 4.*no chunked prefill"),
        (line_prefill(1), "answer for token 1.*not for the prompt's last, 0"),
        (line_prefill(65), "65 tokens exceed the largest compiled bucket 64"),
        (line_prefill(8, lines=(4,)), "KV lines .4. are not 1 different ones of 0 to 3"),
        (line_prefill(8, lines=(-1,)), "KV lines"),
        (
            line_prefill(8, sampling_params=sampling(ROWS)),
            r"graph prefill 16 .*sampling_params is \[4, 3\], compiled \[1, 3\]",
        ),
        (line_prefill(8, adapter=ints([0])), r"adapter is \[1\], compiled absent"),
        (line_decode([0, 9], [0, 1]), "2 rows in a prefill.*row at position 0"),
        (line_decode([5, 6, 7, 8], [0, 2, 1, 3]), "row i reads and writes line i"),
        (line_decode([5, 6], [1, 1]), r"KV lines \[1, 1\] are not 2 different"),
        (line_decode([5, 6], [1, 4]), "KV lines"),
        (line_decode([65], [0]), "65 tokens exceed"),
        (
            line_decode([5, 6], [0, 1], sampling_params=sampling(3)),
            r"graph decode 32 .*sampling_params is \[3, 3\], compiled \[4, 3\]",
        ),
    ],
)
def test_a_device_with_kv_lines_refuses(arguments, rule):
    with pytest.raises(RuntimeStepError, match=rule):
        LINES.prepare(arguments)


DRAFTED = ContiguousDevice(
    shaped("contiguous", speculation={"method": "ngram", "num_speculative_tokens": 3})
)


def drafted(first, **more):
    positions = column(first) + np.arange(4, dtype=np.int32)
    seen = (np.arange(max(first)) < column(first)).astype(np.int32)
    return line_decode(first, range(len(first))) | {
        "input_ids": np.full_like(positions, 9), "position_ids": positions, "attention_mask": seen,
        **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (line_decode([5, 6], [0, 1]), "goes on from position 5"),
        (drafted([5, 6], attention_mask=np.ones((2, 9), np.int32)), "mask of the tokens before"),
        ({k: v for k, v in drafted([5, 6]).items() if k != "attention_mask"}, "needs an attention"),
        (drafted([61, 6]), "65 tokens exceed the largest compiled bucket 64"),
    ],
)
def test_a_device_with_drafts_refuses(arguments, rule):
    with pytest.raises(RuntimeStepError, match=rule):
        DRAFTED.prepare(arguments)


def test_a_device_with_drafts_returns_each_lines_tokens_in_order():
    call = DRAFTED.prepare(drafted([5, 6]))
    assert call.graph.shapes["input_ids"] == (ROWS, 4)
    assert call.rows.tolist() == list(range(8))


def block_prefill(count, computed, *, table=range(1, 33), **more):
    table = list(table)
    arguments = {
        "input_ids": np.zeros((1, count), np.int32),
        "position_ids": np.arange(count, dtype=np.int32)[None],
        "seq_ids": ints([0]),
        "sampling_params": sampling(1),
        "slot_mapping": ints([[table[i // 32] * 32 + i % 32 for i in range(computed, count)]]),
        "block_table": ints([table]),
        "full_context_lens": column([count]),
        "computed_context_lens": column([computed]),
    }
    return arguments | more


def block_decode(positions, **more):
    rows = len(positions)
    arguments = {
        "input_ids": column([9] * rows),
        "position_ids": column(positions),
        "seq_ids": np.arange(rows, dtype=np.int32),
        "sampling_params": sampling(rows),
        "slot_mapping": column([5] * rows),
        "block_table": ints([[1, 2, 3]] * rows),
        "full_context_lens": column(positions) + 1,
        "computed_context_lens": column(positions),
    }
    return arguments | more


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (block_prefill(200, 100), "a prefix of 72 tokens in a bucket of 128.*not masked"),
        (block_prefill(192, 128), "prefill of 64 over a prefix of 128: below 128 new tokens"),
        (block_prefill(200, 0), "200 new tokens exceed the largest prefill bucket 128"),
        (
            block_prefill(256, 128, full_context_lens=column([128])),
            "256 token ids for a context of 128.*whole prompt",
        ),
        (block_prefill(64, 0, block_table=ints([[0, 999]])), "blocks 0 to 999"),
        (
            block_prefill(64, 0, sampling_params=sampling(ROWS)),
            r"graph prefill 64 over 0 .*sampling_params is \[4, 3\], compiled \[1, 3\]",
        ),
        (block_decode([5] * 5), "5 rows of 1 tokens in a decode compiled for 4 rows"),
        (block_decode([1024]), "position 1024 exceeds the largest context bucket 1024"),
        (
            block_decode([5], slot_mapping=ints([[5, 6]])),
            r"slot_mapping is \[4, 2\], compiled \[4, 1\]",
        ),
    ],
)
def test_a_device_with_kv_blocks_refuses(arguments, rule):
    with pytest.raises(RuntimeStepError, match=rule):
        BLOCKS.prepare(arguments)


def test_rows_left_out_of_a_decode_write_to_the_spare_cell():
    inputs = LINES.inputs(LINES.prepare(line_decode([40, 7], [3, 1])))
    spare = (LINES.num_cells - 1) * LINES.cell_size
    assert inputs.slots.tolist() == [spare, 64 + 7, spare, 3 * 64 + 40]
    assert inputs.num_rows == ROWS


def test_tokens_without_a_slot_write_to_the_spare_block():
    inputs = BLOCKS.inputs(BLOCKS.prepare(block_decode([40])))
    spare = (BLOCKS.num_cells - 1) * 32
    assert inputs.slots.tolist() == [2 * 32 + 8, spare, spare, spare]


def test_a_decode_writes_where_the_table_says_whatever_its_slot():
    inputs = BLOCKS.inputs(BLOCKS.prepare(block_decode([70, 3])))
    assert inputs.slots.tolist()[:2] == [3 * 32 + 6, 32 + 3]


def test_logits_are_those_of_the_last_position():
    prompt = LINES.inputs(LINES.prepare(line_prefill(10)))
    assert prompt.last_tokens.tolist() == [9]
    assert prompt.token_ids.numel() == 16


@pytest.mark.parametrize(
    ("layout", "device", "graphs"),
    [
        (
            ContiguousLayout(shaped("contiguous")),
            LINES,
            {"prefill 16", "prefill 64", "decode 32", "decode 64"},
        ),
        (
            BlockLayout(shaped("block")),
            BLOCKS,
            {"prefill 64 over 0", "decode 256", "decode 1024"}
            | {f"prefill 128 over {prefix}" for prefix in range(0, 1024, 128)},
        ),
    ],
    ids=["contiguous", "block"],
)
def test_warm_up_calls_every_graph(layout, device, graphs):
    assert {device.prepare(call.arguments).graph.name for call in layout.warm_up()} == graphs
