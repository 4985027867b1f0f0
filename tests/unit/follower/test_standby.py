import json
import logging

import pytest

from rufus_serve.artifacts.draft import open_draft
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.follower import standby
from rufus_serve.follower.runtimes import identity_of
from rufus_serve.follower.standby import begin_reading, weights_of_every_rank

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip


def nothing(*_):
    pass


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def configured(model, runtime, **artifacts):
    neuron = {"neuron": {"cores_per_node": 2}} if runtime == "neuron" else {}
    more = {"nodes": 2, "max_model_len": 512, "artifacts": artifacts} | neuron
    return ServeConfig(model=str(model), runtime=runtime, **more)


@pytest.mark.parametrize("runtime", ["cpu", "neuron"])
@pytest.mark.parametrize("cached", [False, True])
def test_shards_of_every_rank_are_brought_near(model, tmp_path, runtime, cached):
    pytest.importorskip("torch")
    store = tmp_path / "store"
    plain = configured(model, runtime)
    with open_draft(store, identity_of(plain), threads=1, progress=nothing) as draft:
        for rank in (0, 1):
            (draft.folder / f"shard-{rank}").write_text("weights")
        draft.finish("all", {f"shard-{rank}": [rank] for rank in (0, 1)})
        draft.publish()
    cache = {"cache": str(tmp_path / "cache")} if cached else {}
    files = weights_of_every_rank(configured(model, runtime, location=str(store), **cache))
    shards = [path for path in files if path.name.startswith("shard")]
    assert [path.name for path in shards] == ["shard-0", "shard-1"]
    assert all(path.is_relative_to(tmp_path / "cache") is cached for path in shards)


def test_without_artifacts_the_checkpoint_is_read(model):
    (model / "model.safetensors").touch()
    assert weights_of_every_rank(configured(model, "cpu")) == [model / "model.safetensors"]


def test_a_folder_that_nxd_inference_compiled_to_is_read(model, tmp_path):
    folder = tmp_path / "compiled"
    (folder / "weights").mkdir(parents=True)
    for name in ("model.pt", "neuron_config.json", "weights/tp0"):
        (folder / name).touch()
    files = weights_of_every_rank(configured(model, "neuron", location=str(folder)))
    assert folder / "weights" / "tp0" in files


def test_what_cannot_be_read_ahead_ends_no_standby(model, monkeypatch, caplog):
    def refuse(config):
        raise ArtifactError("no artifacts there")

    monkeypatch.setattr(standby, "weights_of_every_rank", refuse)
    monkeypatch.setattr(standby.threading.Thread, "start", lambda thread: thread.run())
    with caplog.at_level(logging.WARNING):
        begin_reading(configured(model, "cpu"))
    assert "cannot read ahead: no artifacts there" in caplog.text
