from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.batches.objects import Batch, Page, new_file
from rufus_serve.leader.api.batches.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "new" / "folder")
    yield found
    found.close()


def test_a_file_is_its_keys_alone(store: Store, tmp_path: Path) -> None:
    file = new_file("a.jsonl", "batch", 3)
    (tmp_path / "content").write_bytes(b"abc")
    store.take(tmp_path / "content", file, "alice")
    assert store.file("alice", file.id) == file
    assert store.file("bob", file.id) is None
    assert store.path(file.id).read_bytes() == b"abc"
    assert (store.stored_bytes("alice"), store.stored_bytes("bob")) == (3, 0)
    assert not store.delete_file("bob", file.id)
    assert store.delete_file("alice", file.id)
    assert not store.path(file.id).exists()


def test_taking_a_file_again_does_no_harm(store: Store, tmp_path: Path) -> None:
    file = new_file("a", "batch", 1)
    (tmp_path / "content").write_bytes(b"x")
    for _ in range(2):
        store.take(tmp_path / "content", file, "alice")
    assert store.files("alice", Page(), "") == ([file], False)


def test_batches_come_newest_first_in_pages(store: Store) -> None:
    batches = [Batch.new("/v1/completions", f"file-{i}", None) for i in range(5)]
    for batch in batches:
        store.save(batch, "alice")
    first, more = store.batches("alice", Page(limit=3))
    assert (first, more) == (batches[:1:-1], True)
    rest, more = store.batches("alice", Page(limit=3, after=first[-1].id))
    assert (rest, more) == (batches[1::-1], False)
    assert store.batches("bob", Page()) == ([], False)


def test_only_unfinished_batches_are_taken_up_again(store: Store) -> None:
    done, left = (Batch.new("/v1/completions", "file-1", {"a": "b"}) for _ in range(2))
    done.become("completed")
    for batch in (done, left):
        store.save(batch, "alice")
    assert store.open_batches() == [("alice", left)]
    left.become("cancelled")
    store.save(left, "alice")
    assert store.open_batches() == []


def test_a_folder_is_one_servers_and_of_a_known_version(store: Store) -> None:
    with pytest.raises(ConfigError, match="another server"):
        Store(store.folder)
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(ConfigError, match="later version"):
        Store(store.folder)
    (store.folder / "state.sqlite").write_bytes(b"no database, whatever its name says" * 99)
    with pytest.raises(ConfigError, match=r"state\.sqlite: file is not a database"):
        Store(store.folder)
    (store.folder / "state.sqlite").unlink()
    store.__init__(store.folder)  # type: ignore[misc]
