import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.artifacts.identity import (
    Identity,
    ModelIdentity,
    WeightFile,
    differences,
    identify_model,
)
from rufus_serve.errors import ModelError

WEIGHTS = (WeightFile(name="model.safetensors", size=10, fingerprint="f0"),)
IDENTITY = Identity(
    model=ModelIdentity(config_sha256="c0", weights=WEIGHTS),
    runtime="neuron",
    num_nodes=2,
    layout=1,
    settings={"seq_len": 4096, "buckets": [128, 512]},
    versions={"neuronx-cc": "2.23"},
)


def changed(**fields) -> Identity:
    return msgspec.structs.replace(IDENTITY, **fields)


CHANGES = {
    "model.config_sha256 is 'c0', wanted 'c1'": changed(
        model=ModelIdentity(config_sha256="c1", weights=WEIGHTS)
    ),
    "num_nodes is 2, wanted 4": changed(num_nodes=4),
    "runtime is 'neuron', wanted 'cpu'": changed(runtime="cpu"),
    "layout is 1, wanted 2": changed(layout=2),
    "settings.seq_len is 4096, wanted 8192": changed(
        settings={"seq_len": 8192, "buckets": [128, 512]}
    ),
    "settings.buckets is [128, 512], wanted [128]": changed(
        settings={"seq_len": 4096, "buckets": [128]}
    ),
    "settings.cp_degree is absent, wanted 2": changed(
        settings={**IDENTITY.settings, "cp_degree": 2}
    ),
    "versions.neuronx-cc is '2.23', wanted '2.24'": changed(versions={"neuronx-cc": "2.24"}),
}


@pytest.mark.parametrize(("told", "wanted"), list(CHANGES.items()), ids=list(CHANGES))
def test_each_field_changes_the_key_and_is_named_with_both_values(told, wanted):
    assert wanted.key != IDENTITY.key
    assert differences(IDENTITY, wanted) == [told]


def test_equal_identities_have_one_key_and_no_difference():
    same = changed(settings=dict(reversed(IDENTITY.settings.items())))
    assert (same.key, differences(IDENTITY, same)) == (IDENTITY.key, [])


def test_another_weight_file_is_told_by_name():
    other = (WeightFile(name="model.safetensors", size=10, fingerprint="f1"),)
    wanted = changed(model=ModelIdentity(config_sha256="c0", weights=other))
    assert differences(IDENTITY, wanted) == [
        "model.weights.model.safetensors.fingerprint is 'f0', wanted 'f1'"
    ]


def test_without_weights_at_hand_weights_are_not_compared():
    wanted = changed(model=ModelIdentity(config_sha256="c0", weights=()))
    assert differences(IDENTITY, wanted) == []


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_differences_are_empty_exactly_for_equal_settings(settings):
    wanted = changed(settings=settings)
    assert bool(differences(IDENTITY, wanted)) is (settings != IDENTITY.settings)


def checkpoint(folder, *, weights: bytes = b"w" * 100, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8, **config}))
    (folder / "model.safetensors").write_bytes(weights)
    return identify_model(folder)


def test_copies_of_a_model_are_one_model(tmp_path):
    first = checkpoint(tmp_path / "a", _name_or_path="/here", transformers_version="4")
    second = checkpoint(tmp_path / "b", _name_or_path="/there", transformers_version="5")
    assert first == second


def test_a_finetune_of_the_same_shape_is_another_model(tmp_path):
    first = checkpoint(tmp_path / "a")
    second = checkpoint(tmp_path / "b", weights=b"w" * 99 + b"x")
    assert first.config_sha256 == second.config_sha256
    assert first.weights != second.weights


def test_a_large_file_is_told_from_one_that_differs_throughout(tmp_path):
    first = checkpoint(tmp_path / "a", weights=bytes(20 << 20))
    second = checkpoint(tmp_path / "b", weights=b"\1" * (20 << 20))
    assert first.weights[0].fingerprint != second.weights[0].fingerprint


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        identify_model(tmp_path)


def test_a_drafts_checkpoint_counts_and_a_model_without_one_keeps_its_key():
    assert IDENTITY.key == "18d0e5fd84f8ebf0868a"
    with_draft = changed(draft=ModelIdentity(config_sha256="d0", weights=WEIGHTS))
    other = changed(draft=ModelIdentity(config_sha256="d1", weights=()))
    assert with_draft.key != IDENTITY.key
    assert "draft.config_sha256 is absent, wanted 'd0'" in differences(IDENTITY, with_draft)
    assert differences(with_draft, other) == ["draft.config_sha256 is 'd0', wanted 'd1'"]
