"""From compile to load: shards made ahead of time are the bytes a follower would cut itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from rufus_serve.artifacts.draft import draft_folder  # noqa: E402
from rufus_serve.compiler.compile import compile_artifacts  # noqa: E402
from rufus_serve.config.schema import ServeConfig  # noqa: E402
from rufus_serve.errors import ArtifactError  # noqa: E402
from rufus_serve.runtime.cpu import CpuRuntime  # noqa: E402
from rufus_serve.runtime.cpu.weight_source import open_weights, shard_identity  # noqa: E402
from rufus_serve.shard.checkpoint import Checkpoint  # noqa: E402
from rufus_serve.shard.model_config import read_model_config  # noqa: E402
from rufus_serve.shard.partition import Partition  # noqa: E402
from rufus_serve.shard.shard_file import ShardFile, slices_of  # noqa: E402

SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3, "vocab_size": 131, "max_position_embeddings": 128,
}  # fmt: skip
MODELS = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama with tied embeddings": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}


def nothing(*_):
    pass


def write_model(folder: Path, name: str = "llama", *, dtype=torch.bfloat16, seed=0) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(name.split(maxsplit=1)[0], **SIZES, **MODELS[name])
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size="20KB")
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def configured(model: str, *, nodes: int = 2, **artifacts) -> ServeConfig:
    return ServeConfig(model=model, nodes=nodes, artifacts=artifacts, max_model_len=128)


def compiled(config: ServeConfig, out: Path) -> Path:
    return Path(compile_artifacts(config, str(out), force=False, progress=nothing))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_shards_hold_the_bytes_that_the_checkpoint_gives(tmp_path, name, nodes):
    folder = write_model(tmp_path / "model", name)
    plain = configured(folder, nodes=nodes)
    compiled(plain, tmp_path / "out")
    ready = configured(folder, nodes=nodes, location=str(tmp_path / "out"), required=True)
    shape = read_model_config(Path(folder))
    for rank in range(nodes):
        sources = [open_weights(config, rank, nothing).source for config in (plain, ready)]
        assert isinstance(sources[1], ShardFile)
        slices = slices_of(shape, Partition.of(shape, num_nodes=nodes, node_rank=rank), sources[0])
        assert len(slices) > 10
        for one in slices:
            if one.peaks_of:
                name = one.name.removesuffix(".row_peaks")
                peaks, stored = (source.row_peaks(name, one.peaks_of) for source in sources)
                assert torch.equal(peaks, stored), one
                continue
            options = {"dtype": torch.bfloat16, "rows": one.rows, "columns": one.columns}
            cut, stored = (source.read(one.name, one.shape, **options) for source in sources)
            assert torch.equal(cut.view(torch.uint8), stored.view(torch.uint8)), one
        for source in sources:
            source.close()


def test_a_shard_holds_an_output_layer_that_the_configuration_forgets(tmp_path):
    folder = Path(write_model(tmp_path / "model", "llama with tied embeddings"))
    output = torch.ones(SIZES["vocab_size"], SIZES["hidden_size"], dtype=torch.bfloat16)
    save_file({"lm_head.weight": output}, folder / "output.safetensors")
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["lm_head.weight"] = "output.safetensors"
    index.write_text(json.dumps(listed))
    compiled(configured(str(folder), nodes=2), tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*/shards/node-000.safetensors")
    cut = load_file(shard)
    assert torch.equal(cut["lm_head.weight"], output[: len(cut["lm_head.weight"])])
    assert not torch.equal(cut["lm_head.weight"], cut["model.embed_tokens.weight"])


def test_a_follower_loads_without_the_checkpoints_weights(tmp_path):
    folder = write_model(tmp_path / "model")
    compiled(configured(folder), tmp_path / "out")
    for path in Path(folder).glob("*.safetensors*"):
        path.unlink()
    infos = []
    for rank in (0, 1):
        config = configured(folder, location=str(tmp_path / "out"), cache=tmp_path / f"node{rank}")
        runtime = CpuRuntime(config, rank)
        infos.append(runtime.load(nothing))
        runtime.close()
    assert all(info.weights_bytes > 0 for info in infos)
    shards = sorted(str(path.name) for path in tmp_path.glob("node*/*/shards/*"))
    assert shards == ["node-000.safetensors", "node-001.safetensors"]


def test_artifacts_behind_a_url_are_copied_there_and_fetched(tmp_path, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    where = compile_artifacts(configured(model), "memory://shards", force=False, progress=nothing)
    assert where.startswith("memory://shards/")
    config = configured(model, location="memory://shards", cache=tmp_path / "node")
    open_weights(config, 1, nothing).source.close()
    assert [path.name for path in tmp_path.glob("node/*/shards/*")] == ["node-001.safetensors"]


def test_a_second_compile_keeps_everything(tmp_path, model):
    folder = compiled(configured(model), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert compiled(configured(model), tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_flipped_byte_is_found_and_only_its_shard_made_again(tmp_path, model):
    folder = compiled(configured(model), tmp_path)
    good, bad = (folder / f"shards/node-00{rank}.safetensors" for rank in (0, 1))
    whole = bad.read_bytes()
    damaged = bytearray(whole)
    damaged[-7] ^= 4
    bad.write_bytes(bytes(damaged))
    config = configured(model, location=str(tmp_path))
    with pytest.raises(ArtifactError, match=r"node-001\.safetensors: expected sha256 \w+, found"):
        open_weights(config, 1, nothing)
    open_weights(config, 0, nothing).source.close()
    before = good.stat().st_mtime_ns
    compiled(configured(model), tmp_path)
    assert bad.read_bytes() == whole
    assert good.stat().st_mtime_ns == before


def test_shards_for_another_number_of_nodes_are_refused(tmp_path, model):
    compiled(configured(model), tmp_path)
    with pytest.raises(ArtifactError, match="num_nodes is 2, wanted 3"):
        open_weights(configured(model, nodes=3, location=str(tmp_path)), 0, nothing)


def test_shards_of_a_changed_checkpoint_are_refused(tmp_path):
    folder = write_model(tmp_path / "model")
    compiled(configured(folder), tmp_path / "out")
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(ArtifactError, match=r"fingerprint is '\w+', wanted"):
        open_weights(configured(folder, location=str(tmp_path / "out")), 0, nothing)


def test_required_artifacts_forbid_reading_the_checkpoint(model):
    with pytest.raises(ArtifactError, match=r"artifacts\.required forbids sharding"):
        CpuRuntime(configured(model, required=True), 0).load(nothing)


def test_a_shard_of_other_slices_names_the_tensor_and_both(tmp_path, model):
    compiled(configured(model), tmp_path)
    path = next(tmp_path.glob("*/shards/node-000.safetensors"))
    shape = read_model_config(Path(model))
    one = slices_of(shape, Partition.of(shape, num_nodes=3, node_rank=0), Checkpoint(Path(model)))[
        0
    ]
    with pytest.raises(ArtifactError, match=r"embed_tokens.weight: expected slice .* found"):
        ShardFile(path).read(one.name, one.shape, dtype=torch.bfloat16, rows=one.rows)


def test_a_file_that_is_no_shard_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not a shard")
    with pytest.raises(ArtifactError, match=r"x\.safetensors: not a shard"):
        ShardFile(tmp_path / "x.safetensors")


_KILLED_IN_UNIT_1 = """
import os, signal, sys
from rufus_serve.compiler import cpu_builder
from rufus_serve.compiler.compile import compile_artifacts
from rufus_serve.config.schema import ServeConfig

real = cpu_builder.write_shard
def dies(path, *args, progress):
    def until_half(done, total, detail):
        if "node-001" in path.name and done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)
    real(path, *args, progress=until_half)
cpu_builder.write_shard = dies
config = ServeConfig(model=sys.argv[1], nodes=3)
compile_artifacts(config, sys.argv[2], force=False, progress=lambda *_: None)
"""


def test_a_killed_compile_is_gone_on_with(tmp_path, model):
    config = configured(model, nodes=3)
    key = shard_identity(config).key
    run = subprocess.run(
        [sys.executable, "-c", _KILLED_IN_UNIT_1, model, str(tmp_path)], check=False, timeout=100
    )
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / key).exists()
    draft = draft_folder(tmp_path, key)
    first = draft / "shards/node-000.safetensors"
    written = first.stat().st_mtime_ns
    assert (draft / "shards/node-001.safetensors").exists()
    told = []
    compile_artifacts(config, str(tmp_path), force=False, progress=lambda *call: told.append(call))
    assert ("node 0", 1, 1, "kept") in told
    assert ("node 1", 1, 1, "kept") not in told
    assert (tmp_path / key / "shards/node-000.safetensors").stat().st_mtime_ns == written
    manifest = json.loads((tmp_path / key / "manifest.json").read_text())
    assert len(manifest["files"]) == 3
    for rank in range(3):
        open_weights(
            configured(model, nodes=3, location=str(tmp_path)), rank, nothing
        ).source.close()


_FETCH = """
import sys
from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.cpu.weight_source import open_weights

model, store, cache, rank = sys.argv[1:]
config = ServeConfig(model=model, nodes=2, artifacts={"location": store, "cache": cache})
sys.stdin.readline()
open_weights(config, int(rank), lambda *_: None).source.close()
"""


def test_two_nodes_fetch_at_the_same_time_into_a_shared_cache(tmp_path, model):
    compiled(configured(model), tmp_path / "store")
    arguments = [model, str(tmp_path / "store"), str(tmp_path / "cache")]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", _FETCH, *arguments, str(rank)], stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for node in nodes:
        node.stdin.write(b"go\n")
        node.stdin.close()
    deadline = time.monotonic() + 90
    codes = [node.wait(timeout=deadline - time.monotonic()) for node in nodes]
    assert codes == [0, 0]
    shards = list((tmp_path / "cache").glob("*/shards/*"))
    assert sorted(path.name for path in shards) == ["node-000.safetensors", "node-001.safetensors"]


def test_the_command_prints_where_the_artifacts_are(tmp_path, model):
    command = [sys.executable, "-m", "rufus_serve.cli.main", "compile", model]
    run = subprocess.run(
        [*command, "--nodes", "2", "--out", str(tmp_path)],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    folder = Path(run.stdout.strip())
    assert (folder / "manifest.json").exists()
    assert "node 1: " in run.stderr
