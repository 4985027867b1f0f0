import json
from types import SimpleNamespace

import pytest
from tests.unit.llama import LLAMA

from rufus_serve.artifacts.draft import open_draft
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.runtime.neuron import artifacts, compiling
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.topology import Topology


def nothing(*_):
    pass


class Application:
    """Compiles to two files, as NxD Inference does."""

    def __init__(self, **fields):
        self._text = json.dumps({"neuron_config": {"tp_degree": 4, "start_rank_id": 2, **fields}})
        self.config = SimpleNamespace(to_json_string=lambda: self._text)
        self.compiled_to = []

    def compile(self, folder):
        self.compiled_to.append(folder)


def configured(tmp_path, **settings):
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(LLAMA))
    defaults = {"nodes": 2, "neuron": {"cores_per_node": 2}, "max_model_len": 512}
    return ServeConfig(model=str(model), runtime="neuron", **{**defaults, **settings})


def make_ahead(config, root):
    """What `rufus-serve compile` would have made, with empty shards."""
    with open_draft(root, compiling.identity(config), threads=1, progress=nothing) as draft:
        saved = {"neuron_config": {"tp_degree": 4, "start_rank_id": 0}}
        files = {"model.pt": "graphs", "neuron_config.json": json.dumps(saved)}
        ranks = {}
        for node in (0, 1):
            files |= {path: path for path in compiling.shard_paths(config, node)}
            ranks |= {path: [node] for path in compiling.shard_paths(config, node)}
        for path, text in files.items():
            (draft.folder / path).parent.mkdir(exist_ok=True)
            (draft.folder / path).write_text(text)
        draft.finish("all", {path: ranks.get(path, []) for path in files})
        return draft.publish()


def prepared(config, application=None, *, node_rank=0):
    model = NeuronModel.of(config, Topology.of(config, node_rank, 1))
    return artifacts.prepare(model, application or Application(), config, nothing).folder


def test_a_node_takes_its_own_shards_of_what_was_made_ahead(tmp_path):
    make_ahead(configured(tmp_path), tmp_path / "store")
    ahead = {"location": str(tmp_path / "store"), "cache": str(tmp_path / "node")}
    application = Application()
    folder = prepared(configured(tmp_path, artifacts=ahead), application, node_rank=1)
    assert application.compiled_to == []
    assert sorted(path.name for path in (folder / "weights").iterdir()) == [
        "tp2_sharded_checkpoint.safetensors", "tp3_sharded_checkpoint.safetensors"
    ]  # fmt: skip


def test_damage_is_found_in_a_folder_named_itself(tmp_path):
    folder = make_ahead(configured(tmp_path), tmp_path / "store")
    config = configured(tmp_path, artifacts={"location": str(folder)})
    assert prepared(config) == folder
    (folder / "weights/tp1_sharded_checkpoint.safetensors").write_text("damaged")
    with pytest.raises(ArtifactError, match="tp1_sharded_checkpoint"):
        prepared(config)


def test_what_was_made_for_other_settings_is_refused_by_field(tmp_path):
    make_ahead(configured(tmp_path), tmp_path / "store")
    ahead = {"location": str(tmp_path / "store")}
    other = configured(tmp_path, artifacts=ahead, max_num_seqs=16)
    with pytest.raises(ArtifactError, match="batch_size is 8, wanted 16"):
        prepared(other)


def test_graphs_of_another_nxd_inference_configuration_are_refused(tmp_path):
    make_ahead(configured(tmp_path), tmp_path / "store")
    config = configured(tmp_path, artifacts={"location": str(tmp_path / "store")})
    with pytest.raises(ArtifactError, match="cp_degree is None, not 2"):
        prepared(config, Application(cp_degree=2))


def test_an_empty_location_is_refused(tmp_path):
    config = configured(tmp_path, artifacts={"location": str(tmp_path / "new")})
    with pytest.raises(ArtifactError, match="no artifacts there"):
        prepared(config)


def test_required_artifacts_forbid_compiling(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    application = Application()
    with pytest.raises(ArtifactError, match="required"):
        prepared(configured(tmp_path, nodes=1, artifacts={"required": True}), application)
    assert application.compiled_to == []


def test_several_nodes_do_not_compile_each_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    application = Application()
    with pytest.raises(ArtifactError, match="nodes 2 without artifacts: every node would compile"):
        prepared(configured(tmp_path), application)
    assert application.compiled_to == []


def test_graphs_that_nxd_inference_compiled_itself_are_used_as_they_are(tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "model.pt").write_text("graphs")
    (folder / "neuron_config.json").write_text('{"neuron_config": {"tp_degree": 4}}')
    config = configured(tmp_path, artifacts={"location": str(folder)})
    assert prepared(config) == folder
