"""The end of a batch: its answers become files, and lines never asked get an error."""

from pathlib import Path

from rufus_serve.batch.journal import Journal
from rufus_serve.batch.lines import BatchLine, Fault, failed, read
from rufus_serve.batch.runner import closing
from rufus_serve.leader.api.batches.objects import Batch, BatchStatus, RequestCounts, StoredFile
from rufus_serve.leader.api.batches.store import Store

_ENDS: dict[BatchStatus, BatchStatus] = {
    "in_progress": "completed",
    "finalizing": "completed",
    "cancelling": "cancelled",
}


def finish(store: Store, batch: Batch, key_id: str) -> None:
    """Bring `batch` to its end; whatever interrupts it, doing it again does the rest.

    Raises:
        OSError, sqlite3.Error, BatchError: the disk refuses.
    """
    answers, errors = store.journal(batch)
    if answers.exists() or errors.exists():
        _close_journal(store, batch)
    batch.output_file_id = _publish(store, answers, batch, key_id, "output")
    batch.error_file_id = _publish(store, errors, batch, key_id, "error")
    if batch.status in _ENDS:
        if batch.status == "in_progress":
            batch.become("finalizing")
        batch.become(_ENDS[batch.status])
    store.save(batch, key_id)


def _close_journal(store: Store, batch: Batch) -> None:
    """Count its lines; give those that an expired batch did not come to an error."""
    with closing(Journal(*store.journal(batch))) as journal:
        if batch.status == "expired":
            for line in read(store.path(batch.input_file_id), endpoint=batch.endpoint):
                if isinstance(line, BatchLine) and line.custom_id not in journal.done:
                    fault = Fault(
                        line=line.number,
                        code="batch_expired",
                        message="the batch expired before this request was asked",
                        custom_id=line.custom_id,
                    )
                    journal.fail(line.custom_id, failed(fault))
        batch.request_counts = RequestCounts(
            batch.request_counts.total, journal.completed, journal.failed
        )


def _publish(store: Store, journal: Path, batch: Batch, key_id: str, kind: str) -> str | None:
    """The id of the file that `journal` became; None if nothing was written to it."""
    file_id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
    place = journal if journal.exists() else store.path(file_id)
    size = place.stat().st_size if place.exists() else 0
    if not size:
        place.unlink(missing_ok=True)
        return None
    file = StoredFile(
        id=file_id,
        bytes=size,
        filename=f"{batch.id}_{kind}.jsonl",
        purpose="batch_output",
        created_at=batch.created_at,
    )
    store.take(journal, file, key_id)
    return file_id
