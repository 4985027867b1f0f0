"""Files and batches as OpenAI's clients know them."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip
OPEN: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
WINDOW_S = 24 * 3600


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One uploaded or written file."""

    id: str
    bytes: int
    filename: str
    purpose: str
    created_at: int
    object: str = "file"
    status: str = "processed"
    expires_at: int | None = None


class RequestCounts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchErrors(msgspec.Struct, frozen=True):
    """Why a batch failed as a whole."""

    data: tuple[dict[str, Any], ...]
    object: str = "list"


class Batch(msgspec.Struct, kw_only=True):
    """One batch; changed by `BatchDesk` alone."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    completion_window: str = "24h"
    object: str = "batch"
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()

    @classmethod
    def new(cls, endpoint: str, input_file_id: str, metadata: dict[str, str] | None) -> "Batch":
        """One that begins now."""
        now = int(time.time())
        return cls(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=metadata,
        )

    @property
    def is_open(self) -> bool:
        """Whether anything is still to be done."""
        return self.status in OPEN

    def become(self, status: BatchStatus) -> None:
        """Change the status, and note when."""
        self.status = status
        setattr(self, f"{status}_at", int(time.time()))

    def fail(self, *errors: dict[str, Any]) -> None:
        """End it as failed, for `errors`."""
        self.errors = BatchErrors(errors)
        self.become("failed")


def new_file(filename: str, purpose: str, size_bytes: int) -> StoredFile:
    """A file that begins to exist now."""
    return StoredFile(
        id=f"file-{uuid.uuid4().hex}",
        bytes=size_bytes,
        filename=filename,
        purpose=purpose,
        created_at=int(time.time()),
    )


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list is wanted."""

    limit: int = 20
    after: str = ""
    """Id of the last one seen."""
    newest_first: bool = True


def as_list(found: Sequence[StoredFile] | Sequence[Batch], *, has_more: bool) -> dict[str, Any]:
    """One page as OpenAI's clients read it."""
    return {
        "object": "list",
        "data": found,
        "first_id": found[0].id if found else None,
        "last_id": found[-1].id if found else None,
        "has_more": has_more,
    }
