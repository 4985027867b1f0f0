"""A server that cannot start says why in its last line, has an exit code, and leaves nothing."""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.server import Server

LOCAL = "--cluster.kind=local"


def failed_start(model: Path, *flags: str) -> tuple[int, str]:
    """Exit code and last line of a server that does not come up, once all of it is gone."""
    server = Server(model, *flags)
    try:
        code = server.process.wait(60)
        last = server.log.splitlines()[-1]
        assert last.startswith("error: "), server.log
        assert "Traceback" not in server.log, server.log
        server.assert_nothing_remains()
        return code, last
    finally:
        server.remove()


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def change_config(model: Path, **fields: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    code, last = failed_start(tmp_path / "absent", LOCAL)
    assert code == 3
    assert f"{tmp_path}/absent: no such folder" in last


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "'gpt2' is not supported"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"dtype": "float64", "torch_dtype": "float64"}, "float64"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(
    broken: Path, fields: dict[str, Any], said: str
) -> None:
    change_config(broken, **fields)
    code, last = failed_start(broken, LOCAL)
    assert code == 3
    assert said in last


def test_a_missing_tensor_is_named(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, last = failed_start(broken, "--nodes=2")
    assert code == 3
    assert "model.layers.1.mlp.up_proj.weight" in last


def test_a_damaged_weight_file_is_named(broken: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    code, last = failed_start(broken, LOCAL)
    assert code == 3
    assert f"{path}: damaged" in last


def test_a_damaged_config_is_named(broken: Path) -> None:
    (broken / "config.json").write_text("{")
    code, last = failed_start(broken, LOCAL)
    assert code == 3
    assert "config.json: not valid JSON" in last


def test_a_missing_tokenizer_is_named(broken: Path) -> None:
    for file in broken.glob("tokenizer*"):
        file.unlink()
    code, last = failed_start(broken, LOCAL)
    assert code == 3
    assert "tokenizer" in last


def test_more_followers_than_heads_are_refused(tiny_model: Path) -> None:
    code, last = failed_start(tiny_model, LOCAL, "--nodes=10")
    assert code == 3
    assert "followers <= query heads must hold, but 10 > 9" in last


def test_a_port_in_use_is_named(tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, last = failed_start(tiny_model, LOCAL, f"--port={port}")
    assert code == 4
    assert f"127.0.0.1:{port}: Address already in use" in last


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--nodez=2",), 2, "nodes"),
        (("--max-model-len=9999",), 3, "max_model_len 9999 exceeds"),
        (("--num-blocks=3", "--max-model-len=1024"), 2, "num_blocks 3 < 33"),
        (("--host=192.0.2.1",), 2, "--allow-anonymous"),
        (("--host=192.0.2.1", "--allow-anonymous"), 4, "192.0.2.1"),
        (("--api-key-file=/nowhere/keys",), 2, "/nowhere/keys"),
        (('--vllm-args={"max_num_sequences": 4}',), 2, "max_num_seqs"),
        (("--cluster.python=/nowhere/python",), 2, "/nowhere/python"),
        (("--cpu.kv-cache-gib=0.000001",), 3, "kv_cache_gib"),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named(
    tiny_model: Path, flags: tuple[str, ...], code: int, said: str
) -> None:
    found, last = failed_start(tiny_model, LOCAL, *flags)
    assert said in last
    assert found == code


def test_an_unreachable_ray_cluster_is_named(tiny_model: Path) -> None:
    code, last = failed_start(
        tiny_model, "--cluster.ray-address=127.0.0.1:1", "--timeouts.join-s=2"
    )
    assert code == 5
    assert "127.0.0.1:1" in last


def test_a_follower_of_another_version_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import rufus_serve.protocol.messages as m\nm.PROTOCOL_VERSION = 99\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    code, last = failed_start(tiny_model, LOCAL, "--nodes=2", f"--cluster.python={python}")
    assert code == 6
    assert "speaks protocol 99 (rufus-serve " in last
    assert "install the same version on both" in last


def test_artifacts_that_are_not_there_are_named_without_another_try(
    tiny_model: Path, tmp_path: Path
) -> None:
    flags = ("--require-artifacts", f"--artifacts.location={tmp_path / 'absent'}")
    code, last = failed_start(tiny_model, LOCAL, *flags)
    assert code == 12
    assert f"{tmp_path}/absent" in last


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: [1\n", "serve.yaml"),
        ("nodes: two\n", "nodes"),
        ("buckets:\n  prefil: [64]\n", "prefill"),
        ("- a list\n", "serve.yaml"),
    ],
)
def test_a_wrong_file_of_settings_is_named(
    tiny_model: Path, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    code, last = failed_start(tiny_model, LOCAL, f"--config={path}")
    assert code == 2
    assert said in last
