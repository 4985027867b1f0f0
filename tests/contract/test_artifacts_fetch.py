from pathlib import Path

import pytest
from artifact_folder import content, identity, make, nothing

from rufus_serve.artifacts import fetch as module
from rufus_serve.artifacts.fetch import fetch
from rufus_serve.artifacts.location import Location
from rufus_serve.errors import ArtifactError


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


def fetched(url, cache=None, *, node_rank=0):
    return fetch(
        str(url), identity(), node_rank=node_rank, cache=cache, threads=2, progress=nothing
    ).folder


def test_a_local_place_is_used_as_it_is(tmp_path):
    made = make(tmp_path)
    assert fetched(tmp_path) == made
    assert fetched(f"file://{made}") == made


def test_damage_in_a_local_place_is_found(tmp_path):
    made = make(tmp_path)
    (made / "files/node-1").write_bytes(content("node-1").upper())
    with pytest.raises(ArtifactError, match=r"node-1: expected sha256 \w+, found"):
        fetched(tmp_path, node_rank=1)
    fetched(tmp_path, node_rank=0)


def test_an_error_that_passes_is_tried_again(tmp_path, monkeypatch):
    make(tmp_path / "store")
    attempts = []
    real = Location.open

    def flaky(self, path):
        attempts.append(path)
        if len(attempts) < 3:
            raise ConnectionResetError("reset by peer")
        return real(self, path)

    monkeypatch.setattr(Location, "open", flaky)
    fetched(tmp_path / "store", tmp_path / "cache")
    assert len(attempts) >= 4


def test_an_error_that_stays_is_told_with_its_attempts(tmp_path, monkeypatch):
    make(tmp_path / "store")

    def broken(self, path):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(Location, "open", broken)
    with pytest.raises(ArtifactError, match=r"reset by peer \(3 attempts\)"):
        fetched(tmp_path / "store", tmp_path / "cache")


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    made = make(tmp_path / "store")
    real, is_full = Path.open, [True]

    def open_(self, *arguments, **options):
        file = real(self, *arguments, **options)
        if is_full[0] and self.suffix == ".part":
            file.close()
            return real(Path("/dev/full"), "wb", buffering=0)
        return file

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(ArtifactError, match=r"No space left on device \(3 attempts\)"):
        fetched(tmp_path / "store", tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    is_full[0] = False
    folder = fetched(tmp_path / "store", tmp_path / "cache")
    assert (folder / "files/node-0").read_bytes() == (made / "files/node-0").read_bytes()


def test_an_unknown_kind_of_url_is_told():
    with pytest.raises(ArtifactError, match="nowhere://x"):
        fetched("nowhere://x/y")


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    make(tmp_path / "store")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file.*: cannot be made"):
        fetched(tmp_path / "store", tmp_path / "file")
