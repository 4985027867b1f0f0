from types import SimpleNamespace

import pytest

from rufus_serve.compiler import room
from rufus_serve.compiler.builder import Need
from rufus_serve.errors import ArtifactError

GIB = 1 << 30


@pytest.fixture(autouse=True)
def host(monkeypatch):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=32 * GIB))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * GIB))


def need(*, memory=GIB, disk=GIB):
    return Need(memory=memory, disk=disk, reason="the checkpoint and the compiler")


def test_what_fits_passes(tmp_path):
    room.check_room(need(memory=32 * GIB, disk=95 * GIB), tmp_path)


def test_too_little_memory_is_told_with_both_numbers_and_the_reason(tmp_path):
    with pytest.raises(ArtifactError) as refused:
        room.check_room(need(memory=41 * GIB), tmp_path)
    for part in ("41.0 GiB", "32.0 GiB", "the checkpoint and the compiler"):
        assert part in str(refused.value)


def test_too_little_disk_is_told_with_both_numbers(tmp_path):
    with pytest.raises(ArtifactError, match=r"about 99\.0 GiB, 100\.0 GiB are free"):
        room.check_room(need(disk=99 * GIB), tmp_path)


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path):
    room.check_room(need(), tmp_path / "a" / "b")
