"""Fused speculation in NxD Inference's own model: the tokens are those of the model alone."""

import json

import numpy as np
import pytest
from nxdi_group import Failed, Reference, write_model
from tests.contract.step_sequences import DRAFTED, SCHEDULES, Sequences

from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.neuron.application import application_class
from rufus_serve.runtime.neuron.artifacts import differences
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.topology import Topology

pytestmark = pytest.mark.timeout(300)

MOST = 4


def settings(model, draft, ranks, *, method="fused", length=131):
    neuron = DRAFTED["neuron"] | {"mode": "nxdi-cpu", "cores_per_node": 1}
    return {
        "model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4,
        "dtype": "float32", "neuron": neuron, "max_model_len": length,
        "buckets": {"prefill": [16, 64, length], "context": [32, 64, length]},
        "speculation": {
            "method": method, "num_speculative_tokens": MOST - 1, "draft_model": str(draft)
        },
    }  # fmt: skip


def write_noisy(model, folder, noise):
    """`model` with noise on its weights: it says the same now and then."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    draft = AutoModelForCausalLM.from_pretrained(model)
    for parameter in draft.parameters():
        parameter.data += noise * parameter.std() * torch.randn_like(parameter)
    draft.save_pretrained(folder)
    return folder


def write_calm(folder):
    """A model whose last token says most of what comes next, which a head can learn by hand."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(write_model(folder, "Llama", heads=9, kv_heads=3) / "model.safetensors")
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= 0.002
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_eagle(model, folder):
    """An EAGLE head of `model`: one layer without its first norm, no last norm, and `fc`.

    `fc` hands the token's embedding on, to which the layer adds little.
    """
    import torch
    from safetensors.torch import load_file, save_file

    write_model(folder, "Llama", heads=9, kv_heads=3, num_hidden_layers=1)
    own, tensors = load_file(folder / "model.safetensors"), load_file(model / "model.safetensors")
    left_out = ("model.norm.weight", "model.layers.0.input_layernorm.weight")
    head = {
        name.removeprefix("model."): 0.02 * tensor
        for name, tensor in own.items()
        if name not in left_out
    }
    head["embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    head["lm_head.weight"] = tensors["lm_head.weight"] * tensors["model.norm.weight"]
    size = own["model.norm.weight"].shape[0]
    head["fc.weight"] = torch.cat((torch.eye(size), torch.zeros(size, size)), dim=1)
    save_file(head, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Chosen(Sequences):
    """Each sequence goes on with what its graph chose; all of it is what `reference` says."""

    def __init__(self, group, reference):
        super().__init__(None, group.info)
        self._group, self._reference = group, reference
        self.counts = []

    def decode(self, *names):
        rows = [self._row(name) for name in names]
        planned = self._builder.build(rows, epoch=1, first_step_id=next(self._step_id))
        for step in planned:
            chosen = self._group.all("choose", step.request)[0]
            for place, of in enumerate(step.rows):
                count = int(chosen.num_accepted[place])
                self._append(names[of.row], chosen.token_ids[place].tolist(), count)

    def _append(self, name, token_ids, count):
        self.counts.append(count)
        assert token_ids[count:] == [-1] * (MOST - count)
        for token_id in token_ids[:count]:
            if len(self.tokens[name]) == self._info.max_model_len:
                break
            wanted = int(np.argmax(self._reference(self.tokens[name])))
            assert token_id == wanted, (name, len(self.tokens[name]))
            self.tokens[name].append(token_id)
        self.computed[name] = len(self.tokens[name]) - 1


def check(group, reference):
    """How many tokens each row got, over all schedules of the contiguous layout."""
    random = np.random.default_rng(11)
    counts = []
    for schedule in SCHEDULES["contiguous"]:
        sequences = Chosen(group, reference)
        schedule(sequences, lambda length: random.integers(3, 504, length).tolist())
        counts += sequences.counts
    return counts


@pytest.fixture(scope="module")
def drafts(model, tmp_path_factory):
    """The model itself, one that agrees now and then, and a small one that never does."""
    folder = tmp_path_factory.mktemp("drafts")
    return {
        "itself": model,
        "noisy": write_noisy(model, folder / "noisy", 0.1),
        "small": write_model(folder / "small", "Llama", heads=3, kv_heads=3, num_hidden_layers=1),
    }


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["itself", "noisy", "small"])
def test_tokens_are_the_models_own_whatever_the_draft_says(
    model, reference, drafts, start_group, name, ranks
):
    group = start_group(settings(model, drafts[name], ranks))
    assert (group.info.chosen_tokens, group.info.multi_token_decode) == (MOST, False)
    counts = check(group, reference)
    group.close()
    assert set(counts) <= set(range(1, MOST + 1))
    if name == "itself":
        assert counts.count(MOST) > len(counts) / 3
    if name == "noisy":
        assert len(set(counts)) > 1


def test_a_tiled_kv_cache_gives_the_same_tokens(model, reference, drafts, start_group):
    """NxD Inference cuts the cache of fused models into tiles of 128 tokens where it can."""
    group = start_group(settings(model, drafts["noisy"], 1, length=256))
    check(group, reference)
    group.close()


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_eagle_head_drafts_in_the_same_calls(tmp_path, start_group, ranks):
    model = write_calm(tmp_path / "calm")
    head = write_eagle(model, tmp_path / "head")
    group = start_group(settings(model, head, ranks, method="eagle"))
    counts = check(group, Reference(model))
    group.close()
    assert {1, MOST} <= set(counts) <= set(range(1, MOST + 1))


def without_its_group(_):
    from contextlib import nullcontext

    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode.draft_groups = nullcontext


def without_its_caches(_):
    from rufus_serve.runtime.neuron import cpu_mode

    cpu_mode._keep_fused_caches = lambda _: None


@pytest.mark.parametrize("unguarded", [without_its_group, without_its_caches])
def test_cpu_mode_runs_no_fused_model_of_itself(model, drafts, start_group, unguarded):
    with pytest.raises(Failed):
        start_group(settings(model, drafts["small"], 1), unguarded=unguarded)


def saved(model, draft, work):
    """The configuration that NxD Inference saves beside its graphs."""
    config = ServeConfig(**settings(model, draft, 1))
    application = NeuronModel.of(config, Topology.of(config, 0, 1)).build(work)
    return application.config.to_json_string()


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_with_graphs_names_the_draft_and_loads_again(model, drafts, tmp_path):
    texts = [saved(model, drafts[name], tmp_path / name) for name in ("small", "noisy", "small")]
    small, noisy, again = map(json.loads, texts)
    assert differences(small, again) == []
    assert any("the draft's num_hidden_layers" in each for each in differences(small, noisy))
    loaded = application_class("LlamaForCausalLM").get_config_cls().from_json_string(texts[0])
    assert loaded.fused_spec_config.draft_config.num_hidden_layers == 1
    assert loaded.fused_spec_config.draft_config.neuron_config.speculation_length == 0
