import os

import pytest

from rufus_serve.artifacts import verify
from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.artifacts.manifest import ManifestFile
from rufus_serve.artifacts.verified import Verified
from rufus_serve.artifacts.verify import fault_of


@pytest.fixture
def hashed(monkeypatch):
    """Files that were read to be hashed."""
    paths = []

    def count(path):
        paths.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(verify, "sha256_of", count)
    return paths


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"graphs")
    return ManifestFile(path="model.pt", size=6, sha256=sha256_of(path))


def test_an_unchanged_file_is_hashed_once(tmp_path, file, hashed):
    for _ in range(3):
        assert fault_of(tmp_path, file, Verified(tmp_path / "notes")) == ""
    assert hashed == ["model.pt"]


def test_a_file_written_again_is_hashed_again(tmp_path, file, hashed):
    verified = Verified(tmp_path / "notes")
    fault_of(tmp_path, file, verified)
    (tmp_path / "model.pt").write_bytes(b"Graphs")
    assert "expected sha256" in fault_of(tmp_path, file, verified)
    assert len(hashed) == 2


def test_a_file_that_keeps_its_time_but_not_its_place_is_hashed_again(tmp_path, file, hashed):
    verified, path = Verified(tmp_path / "notes"), tmp_path / "model.pt"
    fault_of(tmp_path, file, verified)
    before = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"grapes")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert "expected sha256" in fault_of(tmp_path, file, verified)


def test_a_known_file_of_another_checksum_is_not_known(tmp_path, file):
    verified, path = Verified(tmp_path / "notes"), tmp_path / "model.pt"
    fault_of(tmp_path, file, verified)
    assert verified.knows(path, file.sha256)
    assert not verified.knows(path, "0" * 64)


def test_damaged_and_unwritable_notes_are_forgotten(tmp_path, file, hashed):
    notes = tmp_path / "notes"
    fault_of(tmp_path, file, Verified(notes))
    for note in notes.iterdir():
        note.write_text("{")
    assert fault_of(tmp_path, file, Verified(notes)) == ""
    assert fault_of(tmp_path, file, Verified(tmp_path / "model.pt")) == ""
    assert len(hashed) == 3


def test_a_damaged_file_is_never_noted(tmp_path, file):
    verified, path = Verified(tmp_path / "notes"), tmp_path / "model.pt"
    path.write_bytes(b"graphX")
    assert fault_of(tmp_path, file, verified)
    assert not (tmp_path / "notes").exists()
