"""A lost peer ends a step with an error of its own, and so does an abort."""

import time

import numpy as np
import pytest
from nxdi_group import Failed
from test_nxdi_runtime import CONTIGUOUS
from tests.contract.step_sequences import Sequences

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def group(model, start_group):
    settings = {"model": str(model), "runtime": "neuron", "nodes": 3, "max_num_seqs": 2}
    return start_group(settings | CONTIGUOUS)


def first_step(group, prompt):
    """A decode step, after its prefill was run by all."""
    seen = []
    sequences = Sequences(lambda step: seen.append(step) or group.step(step), group.info)
    sequences.add("a", prompt(9))
    sequences.run("a")
    sequences.tokens["a"].append(9)
    sequences.run("a")
    return seen[-1]


def test_a_killed_peer_ends_the_step_of_the_others(group, prompt):
    step = first_step(group, prompt)
    group.kill(2)
    started = time.monotonic()
    for rank in (0, 1):
        with pytest.raises(Failed, match="CollectiveAborted: a peer is gone"):
            group.only(rank, "step", step)
    assert time.monotonic() - started < 10


def test_a_waiting_step_ends_when_the_hung_peer_is_killed(group, prompt):
    """What replaces a follower kills it; an abort alone cannot end a gloo call."""
    step = first_step(group, prompt)
    with pytest.raises(Failed, match="CollectiveAborted"):
        group.only_until_killed(0, step, killed=(1, 2), after_s=0.5)


def test_every_rank_computes_the_same_logits(group, prompt):
    """Rank 0's are sent; on the others they are dropped, not different."""
    tokens = np.array([prompt(9)])
    calls = group.all(
        "call", {"input_ids": tokens, "position_ids": np.arange(9)[None], "seq_ids": np.array([0])}
    )
    np.testing.assert_array_equal(calls[0], calls[1])
    np.testing.assert_array_equal(calls[0], calls[2])
