"""The NeuronConfig options that the shipped configurations set change no logits."""

import numpy as np
import pytest
from nxdi_group import Group, Reference, write_model
from tests.contract.step_sequences import SCHEDULES, Sequences

pytestmark = pytest.mark.timeout(300)

FUSED, SEQUENCE = {"fused_qkv": True}, {"sequence_parallel_enabled": True}
EVEN = {"max_model_len": 192, "buckets": {"prefill": [48, 96, 192], "context": [48, 96, 192]}}
"""Sizes that three ranks divide, and four."""


def settings(model, ranks, options, **degrees):
    neuron = {"mode": "nxdi-cpu", "cores_per_node": 1, "neuron_config": options, **degrees}
    return EVEN | {
        "model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4,
        "dtype": "float32", "neuron": neuron,
    }  # fmt: skip


def check(group, reference):
    random = np.random.default_rng(11)

    class Checked(Sequences):
        def run(self, *names):
            logits = super().run(*names)
            for name, found in logits.items():
                wanted = reference(self.tokens[name])
                np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=0)
            return logits

    for schedule in SCHEDULES["contiguous"]:
        schedule(
            Checked(group.step, group.info), lambda length: random.integers(3, 504, length).tolist()
        )


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "options", [FUSED, SEQUENCE, FUSED | SEQUENCE], ids=["fused", "sequence", "both"]
)
def test_logits_are_those_of_transformers(model, reference, options, ranks):
    group = Group(settings(model, ranks, options)).start()
    try:
        check(group, reference)
    finally:
        group.close()


@pytest.mark.parametrize("options", [FUSED, FUSED | SEQUENCE], ids=["fused", "both"])
def test_they_go_with_hybrid_parallelism(tmp_path_factory, options):
    model = write_model(tmp_path_factory.mktemp("even"), "Llama", heads=8, kv_heads=2)
    degrees = {"cp_degree": 2, "attention_dp_degree": 2}
    group = Group(settings(model, 4, options, **degrees)).start()
    try:
        check(group, Reference(model))
    finally:
        group.close()
