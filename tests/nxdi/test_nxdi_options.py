"""The NeuronConfig options that the shipped configurations set change no logits."""

import pytest
from nxdi_group import Group, Reference, write_model
from nxdi_schedules import check_schedules

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


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "options", [FUSED, SEQUENCE, FUSED | SEQUENCE], ids=["fused", "sequence", "both"]
)
def test_logits_are_those_of_transformers(model, reference, options, ranks):
    group = Group(settings(model, ranks, options)).start()
    try:
        check_schedules(group, reference, "contiguous")
    finally:
        group.close()


@pytest.mark.parametrize("options", [FUSED, FUSED | SEQUENCE], ids=["fused", "both"])
def test_they_go_with_hybrid_parallelism(tmp_path_factory, options):
    model = write_model(tmp_path_factory.mktemp("even"), "Llama", heads=8, kv_heads=2)
    degrees = {"cp_degree": 2, "attention_dp_degree": 2}
    group = Group(settings(model, 4, options, **degrees)).start()
    try:
        check_schedules(group, Reference(model), "contiguous")
    finally:
        group.close()
