from types import SimpleNamespace

import pytest

from rufus_serve.artifacts import read_ahead as module
from rufus_serve.artifacts.read_ahead import read_ahead


def nothing(*_):
    pass


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(b"x" * 100)
    return paths


def test_every_file_is_read_with_progress(files):
    seen = []
    assert read_ahead(files, threads=2, progress=lambda *told: seen.append(told)) == 300
    assert seen == [(100, 300, "read a"), (200, 300, "read b"), (300, 300, "read c")]


def test_reading_ends_before_memory_is_half_full(files, monkeypatch):
    memory = SimpleNamespace(available=500)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: memory)
    assert read_ahead(files, threads=1, progress=nothing) == 200


def test_what_is_absent_is_left_to_whoever_needs_it(files):
    files[1].unlink()
    assert read_ahead(files, threads=1, progress=nothing) == 200
