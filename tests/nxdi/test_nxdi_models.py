"""Every architecture that runtime neuron serves, token by token against transformers."""

import numpy as np
import pytest
from nxdi_group import Reference, as_transformers_5, write_model
from tests.contract.step_sequences import Sequences

pytestmark = pytest.mark.timeout(240)

LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
           "norm_topk_prob": True}  # fmt: skip
MODELS = {
    "llama3": ("Llama", {"rope_scaling": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": 4096}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A checkpoint as transformers 5 writes it, and transformers' answers for it."""
    family, changes = MODELS[request.param]
    folder = write_model(
        tmp_path_factory.mktemp("model"), family, heads=4, kv_heads=2, intermediate_size=96,
        **changes,
    )  # fmt: skip
    reference = Reference(folder)
    as_transformers_5(folder)
    return folder, reference


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "block"])
def test_greedy_tokens_are_those_of_transformers(model, layout, ranks, start_group, prompt):
    folder, reference = model
    neuron = {"mode": "nxdi-cpu", "cores_per_node": 1, "kv_layout": layout}
    group = start_group(
        {
            "model": str(folder), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 2,
            "max_model_len": 256, "block_size": 32, "neuron": neuron,
            "buckets": {"prefill": [128, 256], "context": [128, 256]},
        }
    )  # fmt: skip
    sequences = Sequences(group.step, group.info)
    sequences.add("a", prompt(40))
    sequences.add("b", prompt(150))
    for _ in range(4):
        for name, logits in sequences.run("a", "b").items():
            expected = reference(sequences.tokens[name])
            np.testing.assert_allclose(logits, expected, atol=5e-4, rtol=0)
            sequences.tokens[name].append(int(np.argmax(logits)))
    group.close()
