"""Every token of a schedule equals transformers', in both KV layouts, on one and three ranks."""

import numpy as np
import pytest
from tests.contract import step_sequences
from tests.contract.step_sequences import Sequences

pytestmark = pytest.mark.timeout(240)

MODE = {"mode": "nxdi-cpu", "cores_per_node": 1}
LAYOUTS = {
    name: layout | {"neuron": MODE | layout["neuron"]}
    for name, layout in step_sequences.LAYOUTS.items()
}
CONTIGUOUS, BLOCK = LAYOUTS["contiguous"], LAYOUTS["block"]


over_layouts = pytest.fixture(
    scope="module",
    params=[("contiguous", 1), ("contiguous", 3), ("block", 1), ("block", 3)],
    ids=lambda pair: f"{pair[0]}-tp{pair[1]}",
)
"""Decorates a fixture of groups: `request.param` is layout and ranks."""


def settings_of(model, layout, ranks):
    settings = {"model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4}
    return settings | LAYOUTS[layout]


@over_layouts
def group(request, model, start_group):
    return start_group(settings_of(model, *request.param))


@pytest.fixture
def check(group, reference):
    """Runs a step and holds each sequence's logits against transformers'; appends the token."""
    sequences = Sequences(group.step, group.info)

    def run(*names):
        for name, logits in sequences.run(*names).items():
            expected = reference(sequences.tokens[name])
            np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)
            sequences.tokens[name].append(int(np.argmax(logits)))

    run.sequences = sequences
    return run


def test_prompts_of_many_lengths_are_prefilled(check, prompt):
    lengths = [length for length in (1, 2, 15, 16, 17, 63, 64, 65, 127) if length < 128]
    for length in lengths:
        check.sequences.add("a", prompt(length))
        check("a")
        check.sequences.free("a")


def test_sequences_come_and_go_while_others_decode(check, prompt):
    for name, length in (("a", 5), ("b", 17), ("c", 30)):
        check.sequences.add(name, prompt(length))
    check("b", "c", "a")
    check("c", "a")
    check("a", "b", "c")
    check.sequences.add("d", prompt(41))
    check("d", "b")
    for _ in range(3):
        check("d", "c", "b", "a")
    check.sequences.free("b")
    check("c", "d")
    check.sequences.add("e", prompt(1))
    check("e", "a", "d")
    check("e", "c")
    check("a", "c", "d", "e")


def test_a_sequence_is_decoded_up_to_its_last_position(check, prompt):
    check.sequences.add("a", prompt(125))
    check.sequences.add("b", prompt(3))
    for _ in range(3):
        check("a", "b")


def test_a_resumed_sequence_goes_on_with_the_same_tokens(check, prompt):
    check.sequences.add("a", prompt(20))
    for _ in range(4):
        check("a")
    tokens = check.sequences.tokens["a"]
    check.sequences.free("a")
    check.sequences.add("again", tokens)
    for _ in range(2):
        check("again")
