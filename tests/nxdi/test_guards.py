"""Calls: real NxD Inference's own answer without each guard, then ours. Table: docs/neuron.md."""

import numpy as np
import pytest
from msgspec.structs import replace
from nxdi_group import Failed
from test_nxdi_runtime import BLOCK, CONTIGUOUS
from tests.contract.step_sequences import Sequences

pytestmark = pytest.mark.timeout(240)

CLOSE, WRONG = 2e-4, 5e-2


def off(logits, expected):
    """Largest difference between two rows of logits."""
    return float(np.abs(logits - expected).max())


def without_mask(module):
    guarded = module.neuron_config_fields
    module.neuron_config_fields = lambda *args: guarded(*args) | {"apply_seq_ids_mask": False}


def with_decode_batches(module):
    guarded = module.neuron_config_fields
    module.neuron_config_fields = lambda *args: (
        guarded(*args) | {"apply_seq_ids_mask": False, "token_generation_batches": [2]}
    )


@pytest.fixture(scope="module")
def settings(model):
    return {"model": str(model), "runtime": "neuron", "max_num_seqs": 4}


@pytest.fixture(scope="module")
def contiguous(settings, start_group):
    return start_group(settings | CONTIGUOUS)


@pytest.fixture(scope="module")
def block(settings, start_group):
    return start_group(settings | BLOCK)


def raw_prefill(group, tokens, line):
    count = len(tokens)
    return group.call(input_ids=[tokens], position_ids=[list(range(count))], seq_ids=[line])[0]


def raw_decode(group, tokens, positions, lines):
    column = lambda values: np.array(values).reshape(-1, 1)  # noqa: E731
    return group.call(input_ids=column(tokens), position_ids=column(positions), seq_ids=lines)


def test_a_full_batch_must_be_in_line_order(contiguous, reference, prompt):
    prompts = [prompt(length) for length in (5, 17, 30, 41)]
    for line, tokens in enumerate(prompts):
        raw_prefill(contiguous, tokens, line)
    order = [2, 0, 3, 1]
    longer = [[*tokens, 9] for tokens in prompts]
    positions = [len(prompts[line]) for line in order]
    raw = raw_decode(contiguous, [9] * 4, positions, order)
    assert (
        max(off(row, reference(longer[line])) for row, line in zip(raw, order, strict=True)) > WRONG
    )

    sequences = Sequences(contiguous.step, contiguous.info)
    for line, tokens in enumerate(prompts):
        sequences.add(line, tokens)
    sequences.run(*range(4))
    for line in range(4):
        sequences.tokens[line].append(9)
    for line, logits in sequences.run(*order).items():
        assert off(logits, reference(longer[line])) < CLOSE


def decode_one_beside_a_longer(group, prompt):
    """Logits of a sequence that sat out a step of a shorter one, and its tokens."""
    sequences = Sequences(group.step, group.info)
    sequences.add("long", prompt(40))
    sequences.add("short", prompt(10))
    sequences.run("long", "short")
    sequences.tokens["short"].append(9)
    sequences.run("short")
    sequences.tokens["long"].append(9)
    return sequences.run("long")["long"], sequences.tokens["long"]


def test_a_partial_batch_must_not_write_the_lines_left_out(
    contiguous, settings, start_group, reference, prompt
):
    unguarded = start_group(settings | CONTIGUOUS, unguarded=without_mask)
    logits, tokens = decode_one_beside_a_longer(unguarded, prompt)
    assert off(logits, reference(tokens)) > WRONG
    unguarded.close()
    logits, tokens = decode_one_beside_a_longer(contiguous, prompt)
    assert off(logits, reference(tokens)) < CLOSE


def test_smaller_decode_graphs_cannot_be_fed_by_line(settings, start_group, prompt):
    unguarded = start_group(settings | CONTIGUOUS, unguarded=with_decode_batches)
    for line, length in ((2, 30), (3, 41)):
        raw_prefill(unguarded, prompt(length), line)
    with pytest.raises(Failed, match=r"size of tensor a \(4\) must match .* b \(2\)"):
        raw_decode(unguarded, [9, 9], [30, 41], [2, 3])
    unguarded.close()
    batches = {"buckets": CONTIGUOUS["buckets"] | {"decode_batch": [2, 4]}}
    with pytest.raises(Failed, match=r"ConfigError: buckets.decode_batch \[2, 4\]"):
        start_group(settings | CONTIGUOUS | batches)


def test_a_prompt_of_one_token_must_come_padded(contiguous, reference, prompt):
    tokens = prompt(1)
    assert off(raw_prefill(contiguous, tokens, 0), reference(tokens)) > WRONG
    sequences = Sequences(contiguous.step, contiguous.info)
    sequences.add("one", tokens)
    for _ in range(3):
        logits = sequences.run("one")["one"]
        assert off(logits, reference(sequences.tokens["one"])) < CLOSE
        sequences.tokens["one"].append(9)


def test_a_row_at_position_0_must_not_join_a_decode_batch(contiguous, reference, prompt):
    running, fresh = prompt(17), prompt(1)
    raw_prefill(contiguous, running, 0)
    raw = raw_decode(contiguous, [9, fresh[0]], [17, 0], [0, 1])
    assert off(raw[0], reference([*running, 9])) > WRONG
    sequences = Sequences(contiguous.step, contiguous.info)
    sequences.add("running", running)
    sequences.run("running")
    sequences.tokens["running"].append(9)
    sequences.add("fresh", fresh)
    for name, logits in sequences.run("running", "fresh").items():
        assert off(logits, reference(sequences.tokens[name])) < CLOSE


def test_a_line_that_does_not_exist_must_not_be_prefilled(contiguous, reference, prompt):
    """-1 is taken for the last line, whose sequence is lost."""
    tokens = prompt(20)
    raw_prefill(contiguous, tokens, 3)
    raw_prefill(contiguous, prompt(30), -1)
    raw = raw_decode(contiguous, [9], [20], [3])
    assert off(raw[0], reference([*tokens, 9])) > WRONG
    sequences = Sequences(contiguous.step, contiguous.info)
    for blocks in ([0], [5]):
        sequences.add("a", tokens, blocks=blocks)
        with pytest.raises(Failed, match=r"RuntimeStepError: .* are not all KV lines"):
            sequences.run("a")


def test_a_prefill_must_hold_one_prompt(contiguous, reference, prompt):
    """With several, a shorter one's logits come from its padding."""
    short, long = prompt(12), prompt(30)
    raw = contiguous.call(
        input_ids=[short + [0] * 18, long], position_ids=[list(range(30))] * 2, seq_ids=[0, 1]
    )
    assert off(raw[0], reference(short)) > WRONG
    steps = []
    sequences = Sequences(lambda step: steps.append(step) or contiguous.step(step), contiguous.info)
    sequences.add("long", long)
    assert off(sequences.run("long")["long"], reference(long)) < CLOSE
    twice = {name: np.repeat(getattr(steps[0], name), 2, axis=0)
             for name in ("num_computed_tokens", "context_lens", "block_table")}  # fmt: skip
    with pytest.raises(Failed, match="RuntimeStepError: a prefill step has one row"):
        contiguous.step(replace(steps[0], **twice))


def raw_block_prefill(group, tokens, table, computed):
    size, count = group.info.block_size, len(tokens)
    slots = [table[i // size] * size + i % size for i in range(computed, count)]
    return group.call(
        input_ids=[tokens], position_ids=[list(range(count))], seq_ids=[0],
        slot_mapping=[slots], block_table=[table],
        full_context_lens=[[count]], computed_context_lens=[[computed]],
    )[0]  # fmt: skip


@pytest.mark.parametrize(("cached", "length"), [(160, 260), (192, 300), (320, 430)])
def test_a_prefix_must_fill_its_bucket(block, reference, prompt, cached, length):
    tokens = prompt(length)
    table = list(range(20, 20 + -(-length // 32)))
    sequences = Sequences(block.step, block.info)
    sequences.add("cached", tokens[:cached], blocks=table)
    sequences.run("cached")
    assert off(raw_block_prefill(block, tokens, table, cached), reference(tokens)) > WRONG
    sequences.add("hit", tokens, blocks=table, computed=cached)
    assert off(sequences.run("hit")["hit"], reference(tokens)) < CLOSE
    tokens.append(9)
    sequences.add("decoded", tokens, blocks=[*table, 40], computed=length)
    assert off(sequences.run("decoded")["decoded"], reference(tokens)) < CLOSE


def test_cached_blocks_are_read_and_never_written_by_a_hit(block, reference, prompt):
    tokens = prompt(200)
    sequences = Sequences(block.step, block.info)
    sequences.add("first", tokens[:160])
    sequences.run("first")
    shared = sequences.blocks["first"][:5]
    before = block.probe(blocks_of, shared)
    sequences.add("second", tokens, shared=shared, computed=160)
    assert off(sequences.run("second")["second"], reference(tokens)) < CLOSE
    assert np.array_equal(block.probe(blocks_of, shared), before)


def blocks_of(runtime, blocks):
    cache = runtime._application.models[0].model.kv_mgr.past_key_values
    return np.stack([layer.detach().numpy()[blocks] for layer in cache])


def test_a_prefill_over_a_prefix_must_not_be_short(block, reference, prompt):
    tokens, table = prompt(192), list(range(20, 26))
    sequences = Sequences(block.step, block.info)
    sequences.add("cached", tokens[:128], blocks=table)
    sequences.run("cached")
    with pytest.raises(Failed):
        raw_block_prefill(block, tokens, table, 128)
    sequences.add("hit", tokens, blocks=table, computed=128)
    assert off(sequences.run("hit")["hit"], reference(tokens)) < CLOSE


def test_a_hit_within_512_tokens_is_right_though_nxd_inference_takes_another_graph(
    settings, start_group, reference, prompt
):
    buckets = {"prefill": [128, 512], "context": [128, 256, 512]}
    group = start_group(settings | BLOCK | {"buckets": buckets})
    tokens = prompt(400)
    sequences = Sequences(group.step, group.info)
    sequences.add("cached", tokens[:288])
    sequences.run("cached")
    sequences.add("hit", tokens, shared=sequences.blocks["cached"], computed=288)
    assert off(sequences.run("hit")["hit"], reference(tokens)) < CLOSE
    group.close()


def test_rows_of_kv_blocks_are_numbered_from_0(block, reference, prompt):
    """In CPU mode results are picked by seq_ids, though a device tells rows by their tables."""
    prompts = [prompt(20), prompt(30)]
    sequences = Sequences(block.step, block.info)
    for name, tokens in enumerate(prompts):
        sequences.add(name, tokens)
    sequences.run(0, 1)
    column = lambda values: np.array(values).reshape(-1, 1)  # noqa: E731
    raw = block.call(
        input_ids=column([9, 9]), position_ids=column([20, 30]), seq_ids=[1, 0],
        slot_mapping=column([sequences.blocks[0][0] * 32 + 20, sequences.blocks[1][0] * 32 + 30]),
        block_table=[sequences.blocks[0], sequences.blocks[1]],
        full_context_lens=column([21, 31]), computed_context_lens=column([20, 30]),
    )  # fmt: skip
    assert off(raw[0], reference([*prompts[0], 9])) > WRONG
    for name in (0, 1):
        sequences.tokens[name].append(9)
    for name, logits in sequences.run(0, 1).items():
        assert off(logits, reference([*prompts[name], 9])) < CLOSE


def test_a_block_is_cut_into_the_tiles_that_nxd_inference_makes(block):
    from rufus_serve.runtime.layouts.compiled_shape import block_tile

    blocks, tiles, rest = block.probe(shape_of_the_cache)[:3]
    assert (blocks, tiles * rest) == (block.info.num_blocks + 1, 32)
    assert tiles == block_tile(512 // 32)


def shape_of_the_cache(runtime):
    return list(runtime._application.models[0].model.kv_mgr.past_key_values[0].shape)


def test_buckets_are_foretold_as_nxd_inference_chooses_them(contiguous):
    foretold, chosen = contiguous.probe(choices)
    assert foretold == chosen


def choices(runtime):
    from rufus_serve.runtime.layouts.buckets import strict_bucket

    buckets = [16, 64, 128]
    wrapper = runtime._application.models[0]
    chosen = [wrapper._get_seq_bucket(buckets, n, 0, "first_fit") for n in range(1, 129)]
    return [strict_bucket(n, buckets) for n in range(1, 129)], chosen


def test_lengths_beyond_the_largest_bucket_are_refused_by_both(contiguous, prompt):
    with pytest.raises(Failed, match="ValueError"):
        raw_prefill(contiguous, prompt(129), 0)
    sequences = Sequences(contiguous.step, contiguous.info)
    sequences.add("a", prompt(129), blocks=[1, 2])
    with pytest.raises(Failed, match=r"RuntimeStepError: step .* exceeds max_model_len 128"):
        sequences.run("a")


def test_default_sampling_params_would_not_fit_a_prefill_graph(contiguous):
    """CPU mode does not check shapes; a device's graph of one row has no input of four."""
    assert contiguous.probe(default_sampling_rows) == 4


def default_sampling_rows(runtime):
    return runtime._application.default_sampling_params.shape[0]
