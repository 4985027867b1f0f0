import json
import subprocess

import pytest
from tests.unit.llama import LLAMA

from rufus_serve.artifacts.identity import Identity, ModelIdentity
from rufus_serve.compiler.neuron_builder import NeuronBuilder, failure_text
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError, ConfigError
from rufus_serve.runtime.neuron import compiling


def nothing(*_):
    pass


class FakeCompiling:
    """Two cores a node; writes files of a few bytes and notes its calls."""

    GRAPHS = ("model.pt", "neuron_config.json")

    def __init__(self, *, forgets=""):
        self.calls = []
        self._forgets = forgets

    def identity(self, config):
        return Identity(
            model=ModelIdentity(config_sha256="c", weights=()), runtime="neuron",
            num_nodes=config.nodes, layout=1,
        )  # fmt: skip

    def shard_paths(self, config, node_rank):
        return [f"weights/tp{rank}" for rank in (2 * node_rank, 2 * node_rank + 1)]

    def compile_graphs(self, config, folder, progress):
        self.calls.append("graphs")
        self._write(folder, [*self.GRAPHS, *self.shard_paths(config, 0)])

    def shard_node(self, config, node_rank, folder, progress):
        self.calls.append(node_rank)
        self._write(folder, self.shard_paths(config, node_rank))

    def _write(self, folder, paths):
        for path in paths:
            if path != self._forgets:
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_text(path)


@pytest.fixture
def config(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "model.safetensors").write_bytes(bytes(1000))
    return ServeConfig(
        model=str(model), runtime="neuron", nodes=2, neuron={"cores_per_node": 2}, max_model_len=512
    )


def test_graphs_are_made_once_and_shards_for_each_node(config, tmp_path):
    fake = FakeCompiling()
    builder = NeuronBuilder(config, fake)
    files = [builder.build(unit, tmp_path, nothing) for unit in builder.units()]
    assert fake.calls == ["graphs", 1]
    assert files[0] == {
        "model.pt": (), "neuron_config.json": (), "weights/tp0": (0,), "weights/tp1": (0,)
    }  # fmt: skip
    assert files[1] == {"weights/tp2": (1,), "weights/tp3": (1,)}


def test_a_file_that_was_not_written_is_named(config, tmp_path):
    builder = NeuronBuilder(config, FakeCompiling(forgets="weights/tp1"))
    with pytest.raises(ArtifactError, match=r"wrote no weights/tp1"):
        builder.build(builder.units()[0], tmp_path, nothing)


def test_mode_nxdi_cpu_has_nothing_to_compile(config):
    other = ServeConfig(model=config.model, runtime="neuron", neuron={"mode": "nxdi-cpu"})
    with pytest.raises(ConfigError, match="nxdi-cpu compiles nothing"):
        NeuronBuilder(other, FakeCompiling())


def test_memory_counts_the_checkpoint_and_one_nodes_shards(config):
    need = NeuronBuilder(config, FakeCompiling()).need()
    assert need.memory == 1000 + 500 + (8 << 30)
    assert need.disk == 1000 + (2 << 30)


def test_what_is_compiled_in_is_the_identity(config):
    identity = compiling.identity(config)
    assert identity.settings["tp_degree"] == 4
    assert identity.settings["seq_len"] == 512
    assert "start_rank_id" not in identity.settings
    wider = config.model_copy(update={"max_num_seqs": 16})
    assert compiling.identity(wider).key != identity.key


def test_shards_are_named_by_global_rank(config):
    assert compiling.shard_paths(config, 1) == [
        "weights/tp2_sharded_checkpoint.safetensors",
        "weights/tp3_sharded_checkpoint.safetensors",
    ]


def test_a_failed_compile_tells_the_unit_and_the_compilers_words(config, tmp_path):
    class Fails(FakeCompiling):
        def compile_graphs(self, config, folder, progress):
            raise subprocess.CalledProcessError(70, ["neuronx-cc"], stderr=b"ERROR NCC_INLA001\n")

    builder = NeuronBuilder(config, Fails())
    with pytest.raises(ArtifactError, match=r"make graphs and node 0: ERROR NCC_INLA001\n"):
        builder.build(builder.units()[0], tmp_path, nothing)


def test_a_compilers_own_words_are_told():
    error = subprocess.CalledProcessError(
        70, ["neuronx-cc", "compile"], stderr=b"noise\n" * 50 + b"ERROR NCC_INLA001: bad tile\n"
    )
    text = failure_text(error)
    assert "NCC_INLA001: bad tile" in text
    assert "ended with 70" in text
    assert len(text.splitlines()) == 15


@pytest.mark.parametrize("code", [-9, 137])
def test_a_killed_compiler_is_explained(code):
    text = failure_text(subprocess.CalledProcessError(code, ["neuronx-cc"]))
    assert "too little memory" in text


def test_quantizing_takes_the_checkpoint_in_float32(config):
    wide, narrow = (
        NeuronBuilder(config.model_copy(update={"weights": weights}), FakeCompiling()).need()
        for weights in ("auto", "int8")
    )
    assert narrow.memory > wide.memory
    assert "float32" in narrow.reason
