import json
from types import SimpleNamespace

import pytest
from neuron_sized import configured
from tests.unit.llama import LLAMA

from rufus_serve.errors import ModelError
from rufus_serve.runtime.neuron import artifacts, compiling, neuron_model
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.topology import Topology


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return str(folder)


def planned(tmp_path, *, nodes=2, method="fused", **draft):
    speculation = {
        "method": method, "num_speculative_tokens": 3, "draft_model": write(tmp_path / "d", **draft)
    }  # fmt: skip
    config = configured(
        "contiguous", model=write(tmp_path / "m"), nodes=nodes, speculation=speculation
    )
    return NeuronModel.of(config, Topology.of(config, 0, 1))


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        ({"vocab_size": 512}, "vocabulary of 512 tokens, the model one of 256"),
        (
            {"num_key_value_heads": 5, "num_attention_heads": 10},
            r"draft_model: tensor parallel deg",
        ),
        ({"intermediate_size": 129}, "draft_model: intermediate_size 129"),
    ],
)
def test_a_draft_that_does_not_fit_the_model_is_refused(tmp_path, draft, reason):
    with pytest.raises(ModelError, match=reason):
        planned(tmp_path, **draft)


def test_a_draft_of_another_class_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(neuron_model, "application_class", lambda architecture: architecture)
    model = planned(tmp_path, architectures=["Qwen2ForCausalLM"])
    with pytest.raises(ModelError, match="is a Qwen2ForCausalLM, the model a LlamaForCausalLM"):
        model.build(tmp_path)


def test_artifacts_are_made_of_both_checkpoints(tmp_path):
    keys = {
        compiling.model_identity(planned(tmp_path, **changes)).key
        for changes in ({}, {"num_hidden_layers": 1}, {"method": "eagle"})
    }
    assert len(keys) == 3
    assert planned(tmp_path).folders == [tmp_path / "m", tmp_path / "d"]


@pytest.mark.parametrize(
    ("method", "length", "is_eagle"), [("fused", 0, False), ("eagle", 4, True)]
)
def test_the_drafts_own_configuration_is_the_models_without_the_fusion(
    tmp_path, method, length, is_eagle
):
    of_model = SimpleNamespace(
        enable_fused_speculation=True, speculation_length=4, is_eagle_draft=False
    )
    found = planned(tmp_path, method=method).draft.neuron_config(of_model)
    assert not found.enable_fused_speculation
    assert (found.speculation_length, found.is_eagle_draft) == (length, is_eagle)
    assert (of_model.enable_fused_speculation, of_model.speculation_length) == (True, 4)


def saved(layers, *, path, rank=0):
    draft = {"num_hidden_layers": layers, "neuron_config": {"start_rank_id": rank, "tp_degree": 2}}
    return {
        "neuron_config": {"tp_degree": 2},
        "fused_spec_config": {"draft_config": draft, "draft_model_path": path},
    }


def test_graphs_with_another_draft_are_told_apart_wherever_it_lies():
    ours = saved(2, path="/here", rank=2)
    assert artifacts.differences(saved(2, path="/there"), ours) == []
    assert artifacts.differences(saved(1, path="/here"), ours) == [
        "the draft's num_hidden_layers is 1, not 2"
    ]
    assert artifacts.differences({"neuron_config": {"tp_degree": 2}}, ours) != []
