import json
from pathlib import Path
from typing import Any

import pytest
from recorded_hosts import cpu_context, neuron_context, trn1_32xlarge

from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.artifacts.identity import Identity, identify_model
from rufus_serve.artifacts.manifest import MANIFEST, Manifest, ManifestFile, encode_manifest
from rufus_serve.doctor.artifacts import artifacts
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def made(tmp_path: Path, checkpoint: Path) -> Path:
    """A folder of one artifact, for two nodes."""
    identity = Identity(
        model=identify_model(checkpoint), runtime="cpu", num_nodes=2, layout=1,
        versions={"neuronx-cc": "2.23"},
    )  # fmt: skip
    folder = tmp_path / "artifacts" / identity.key
    (folder / "shards").mkdir(parents=True)
    files = []
    for rank in range(2):
        path = folder / "shards" / f"{rank}"
        path.write_bytes(bytes([rank]) * 1000)
        files.append(
            ManifestFile(
                path=f"shards/{rank}", size=1000, sha256=sha256_of(path), node_ranks=(rank,)
            )
        )
    manifest = Manifest(identity=identity, files=tuple(files), made_by="0.1.0")
    (folder / MANIFEST).write_bytes(encode_manifest(manifest))
    return folder


def judge(model: Path, location: Path, *, quick: bool = False, **settings: Any) -> Finding:
    settings = {"nodes": 2, "artifacts": {"location": str(location)}} | settings
    context = cpu_context(model=str(model), **settings)
    (found,) = artifacts(
        HostContext(context.system, context.config, context.placement, quick=quick)
    )
    return found


def test_good_artifacts_are_found_by_folder_and_by_the_folder_above(checkpoint: Path, made: Path):
    for location in (made, made.parent):
        found = judge(checkpoint, location)
        assert found.level == "ok"
        assert f"{made}: 2 files" in found.what
        assert "checksums match" in found.what


def test_a_damaged_file_is_named_with_what_was_expected(checkpoint: Path, made: Path):
    (made / "shards/1").write_bytes(b"x" * 1000)
    found = judge(checkpoint, made)
    assert (found.level, found.exit_code) == ("error", 12)
    assert f"{made}/shards/1: expected sha256" in found.what
    assert f"--out {made.parent}" in found.fix


def test_quick_compares_sizes_alone(checkpoint: Path, made: Path):
    (made / "shards/1").write_bytes(b"x" * 1000)
    assert judge(checkpoint, made, quick=True).level == "ok"
    (made / "shards/1").write_bytes(b"x" * 999)
    (made / "shards/0").unlink()
    found = judge(checkpoint, made, quick=True)
    assert "expected 1000 bytes, found no file (and 1 more files)" in found.what


def test_artifacts_of_another_model_or_group_are_told_field_by_field(checkpoint: Path, made: Path):
    found = judge(checkpoint, made, nodes=3)
    assert "num_nodes is 2, wanted 3" in found.what
    (checkpoint / "model.safetensors").write_bytes(b"WEIGHTS")
    assert "model.weights.model.safetensors.fingerprint" in judge(checkpoint, made).what


def test_no_artifacts_and_a_damaged_manifest_are_errors(
    checkpoint: Path, made: Path, tmp_path: Path
):
    found = judge(checkpoint, tmp_path / "nowhere")
    assert (found.level, "no artifacts there" in found.what) == ("error", True)
    assert f"rufus-serve compile --config FILE --out {tmp_path}/nowhere" in found.fix
    (made / MANIFEST).write_text("{")
    assert "is damaged" in judge(checkpoint, made).what


def test_a_folder_that_nxd_inference_compiled_to_has_no_checksums(checkpoint: Path, tmp_path: Path):
    for name in ("model.pt", "neuron_config.json"):
        (tmp_path / name).write_text("")
    found = judge(checkpoint, tmp_path)
    assert (found.level, "no checksums" in found.what) == ("ok", True)


def test_without_a_location_only_devices_have_something_to_say(checkpoint: Path):
    assert next(artifacts(cpu_context(model=str(checkpoint)))).level == "skipped"
    alone, one_of_two = (
        next(artifacts(neuron_context(trn1_32xlarge(), model=str(checkpoint), nodes=nodes)))
        for nodes in (1, 2)
    )
    assert (alone.level, "compiled at the first start" in alone.what) == ("note", True)
    assert (one_of_two.level, one_of_two.exit_code) == ("error", 12)
