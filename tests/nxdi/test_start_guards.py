"""Start-up: what real NxD Inference takes silently, and what is refused or rewritten here."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from nxdi_group import Failed, Reference, as_transformers_5, write_llama
from test_guards import CLOSE, WRONG, off, raw_prefill
from test_nxdi_runtime import CONTIGUOUS

from rufus_serve.runtime.neuron.application import _APPLICATIONS

pytestmark = pytest.mark.timeout(240)


def without_overlay(module):
    module.config_overlay = lambda config: config.raw


def without_sharding_check(module):
    module.check_sharding = lambda *_: None


@pytest.fixture(scope="module")
def settings(model):
    return {"model": str(model), "runtime": "neuron", "max_num_seqs": 4}


@pytest.fixture(scope="module")
def contiguous(settings, start_group):
    return start_group(settings | CONTIGUOUS)


def test_applications_are_those_of_nxd_inferences_own_registry():
    """Read as text: importing the registry loads every model it has."""
    (package,) = find_spec("neuronx_distributed_inference").submodule_search_locations
    registry = (Path(package) / "utils/constants.py").read_text()
    for module, name in _APPLICATIONS.values():
        path = f"neuronx_distributed_inference.models.{module}.modeling_{module}"
        assert f"from {path} import {name}\n" in registry
        assert f'"{module}": {{"causal-lm": {name}}}' in registry


def test_unknown_fields_are_silent_in_nxd_inference_and_refused_here(
    contiguous, settings, start_group
):
    assert contiguous.probe(accepts_silently, "atn_kernel_enabled")
    changed = {**CONTIGUOUS["neuron"], "neuron_config": {"atn_kernel_enabled": True}}
    with pytest.raises(Failed, match=r"atn_kernel_enabled.*did you mean attn_kernel_enabled"):
        start_group(settings | CONTIGUOUS | {"neuron": changed})


def accepts_silently(runtime, name):
    from neuronx_distributed_inference.models.config import NeuronConfig

    return not hasattr(NeuronConfig(**{name: True}), name)


def test_every_field_of_nxd_inference_counts_as_known(contiguous):
    assert contiguous.probe(unknown_attributes) == set()


def unknown_attributes(runtime):
    from rufus_serve.runtime.neuron.neuron_config import accepted_fields

    config = runtime._application.neuron_config
    derived = {"enable_long_context_mode", "enable_token_tree", "is_chunked_prefill",
               "is_hidden_dim_shuffled", "is_intermediate_dim_shuffled", "is_prefill_stage",
               "kv_cache_tiling", "kv_cache_update_with_kernel", "tile_cc"}  # fmt: skip
    return set(vars(config)) - accepted_fields(type(config)) - derived


def test_degrees_that_nxd_inference_shards_wrongly_are_refused(settings, start_group):
    with pytest.raises(Failed, match=r"ModelError.*degree 2 .*3 KV heads"):
        start_group(settings | CONTIGUOUS | {"nodes": 2})
    with pytest.raises(Failed, match=r"RuntimeError|RuntimeStepError"):
        start_group(settings | CONTIGUOUS | {"nodes": 2}, unguarded=without_sharding_check)


def test_rotary_settings_of_transformers_5_are_rewritten(tmp_path, settings, start_group, prompt):
    folder = write_llama(tmp_path / "model")
    reference = Reference(folder)
    as_transformers_5(folder)
    tokens = prompt(50)
    mine = settings | CONTIGUOUS | {"model": str(folder)}
    unguarded = start_group(mine, unguarded=without_overlay)
    assert off(raw_prefill(unguarded, tokens, 0), reference(tokens)) > WRONG
    guarded = start_group(mine)
    assert off(raw_prefill(guarded, tokens, 0), reference(tokens)) < CLOSE


def test_artifacts_of_another_configuration_are_told_apart(contiguous):
    assert contiguous.probe(saved_differences, {}) == []
    assert contiguous.probe(saved_differences, {"start_rank_id": 32}) == []
    assert contiguous.probe(saved_differences, {"seq_len": 4096}) == ["seq_len is 4096, not 128"]


def test_graphs_of_another_configuration_are_loaded_silently_and_refused_here(contiguous):
    loaded, refusal = contiguous.probe(load_graphs_of_another_configuration)
    assert loaded == 128
    assert refusal.startswith("ArtifactError")
    assert "seq_len is 4096, not 128" in refusal


def load_graphs_of_another_configuration(runtime):
    """The seq_len that NxD Inference goes on with, and what our comparison says."""
    import torch

    from rufus_serve.errors import ArtifactError
    from rufus_serve.runtime.neuron.artifacts import check_same

    application = runtime._application
    wanted = json.loads(application.config.to_json_string())
    running = [wrapper.model for wrapper in application.models]
    with tempfile.TemporaryDirectory() as folder:
        saved = wanted | {"neuron_config": wanted["neuron_config"] | {"seq_len": 4096}}
        (Path(folder) / "neuron_config.json").write_text(json.dumps(saved))
        torch.jit.save(torch.jit.script(torch.nn.Identity()), f"{folder}/model.pt")
        application.load_weights = lambda *_, **__: None
        try:
            application.load(f"{folder}/", skip_warmup=True)
            loaded = application.neuron_config.seq_len if application.is_loaded_to_neuron else None
            check_same(Path(folder), wanted)
        except ArtifactError as error:
            return loaded, f"{type(error).__name__}: {error}"
        finally:
            del application.load_weights
            application.traced_model, application.is_loaded_to_neuron = None, False
            for wrapper, model in zip(application.models, running, strict=True):
                wrapper.model = model
    return loaded, ""


def saved_differences(runtime, changes):
    from rufus_serve.runtime.neuron.artifacts import differences

    config = runtime._application.config
    with tempfile.TemporaryDirectory() as folder:
        config.save(folder)
        saved = json.loads((Path(folder) / "neuron_config.json").read_text())
    saved["neuron_config"] |= changes
    return differences(saved, json.loads(config.to_json_string()))
