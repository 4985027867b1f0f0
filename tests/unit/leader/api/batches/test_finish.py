import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.batch.lines import parse
from rufus_serve.leader.api.batches.finish import finish
from rufus_serve.leader.api.batches.objects import Batch, RequestCounts
from rufus_serve.leader.api.batches.store import Store

URL = "/v1/completions"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "folder")
    yield found
    found.close()


def begun(store: Store, *, answered: int) -> Batch:
    """A batch of three lines that were read, some of them answered."""
    batch = Batch.new(URL, "file-1", None)
    asked = [{"custom_id": f"{i}", "method": "POST", "url": URL, "body": {}} for i in range(3)]
    assert parse(json.dumps(asked[0]).encode(), 1).custom_id == "0"
    store.path("file-1").write_text("\n".join(map(json.dumps, asked)))
    answers, _ = store.journal(batch)
    written = [{"custom_id": f"{i}", "response": {}, "error": None} for i in range(answered)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in written))
    batch.become("in_progress")
    batch.request_counts = RequestCounts(3)
    return batch


def test_answers_become_a_file_of_the_key(store: Store) -> None:
    batch = begun(store, answered=3)
    finish(store, batch, "alice")
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts == RequestCounts(3, 3, 0)
    assert batch.output_file_id is not None
    assert store.path(batch.output_file_id).read_text().count("\n") == 3
    assert store.file("alice", batch.output_file_id) is not None
    assert store.batch("alice", batch.id) == batch


def test_what_an_expired_batch_did_not_come_to_is_told_line_by_line(store: Store) -> None:
    batch = begun(store, answered=1)
    batch.become("expired")
    finish(store, batch, "alice")
    assert batch.request_counts == RequestCounts(3, 1, 2)
    assert batch.error_file_id is not None
    lines = map(json.loads, store.path(batch.error_file_id).read_text().splitlines())
    assert [(line["custom_id"], line["error"]["code"]) for line in lines] == [
        ("1", "batch_expired"), ("2", "batch_expired"),
    ]  # fmt: skip


@pytest.mark.parametrize("lost", ["nothing", "row", "status"])
def test_an_interrupted_end_is_brought_to_its_end(store: Store, lost: str) -> None:
    batch = begun(store, answered=2)
    finish(store, batch, "alice")
    once = store.batch("alice", batch.id)
    assert once is not None
    if lost == "row":
        store._db.execute("DELETE FROM files WHERE id = ?", (once.output_file_id,))
    if lost == "status":
        batch.status = "finalizing"
    finish(store, batch, "alice")
    assert batch.output_file_id == once.output_file_id
    assert batch.request_counts == once.request_counts
    assert store.file("alice", str(batch.output_file_id)) is not None
    assert store.stored_bytes("alice") == store.path(str(batch.output_file_id)).stat().st_size
