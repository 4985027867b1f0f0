"""`Store`: files on disk, and what is known of files and batches in SQLite beside them."""

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import TypeVar

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.batches.objects import OPEN, Batch, Page, StoredFile

_VERSION = 1
_SCHEMA = """
CREATE TABLE files(
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, key_id TEXT NOT NULL,
    purpose TEXT NOT NULL, size_bytes INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE batches(
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, key_id TEXT NOT NULL,
    status TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX files_of ON files(key_id, number);
CREATE INDEX batches_of ON batches(key_id, number);
"""
_Item = TypeVar("_Item", StoredFile, Batch)


class Store:
    """One folder's; used by one thread. A key's name stands with all that is its own."""

    def __init__(self, folder: Path) -> None:
        """Open, or begin, the folder's state.

        Raises:
            ConfigError: the folder cannot be used, is another server's, or of a later version.
        """
        self.folder = folder
        try:
            for each in (folder, folder / "files", folder / "batches"):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"batch.folder {folder} cannot be used: {error}") from error
        try:
            self._db = self._opened()
        except BaseException:
            os.close(self._lock)
            raise

    def _opened(self) -> sqlite3.Connection:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"batch.folder {self.folder} is in use by another server; give each its own"
            ) from error
        database = sqlite3.connect(self.folder / "state.sqlite", check_same_thread=False)
        try:
            self._begin(database)
        except sqlite3.Error as error:
            database.close()
            raise ConfigError(f"batch.folder {self.folder}: state.sqlite: {error}") from error
        except ConfigError:
            database.close()
            raise
        return database

    def _begin(self, database: sqlite3.Connection) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise ConfigError(
                f"batch.folder {self.folder} was written by a later version of rufus-serve "
                f"(state {version}, known here {_VERSION})"
            )
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    # ---- files ----

    def path(self, file_id: str) -> Path:
        """Where the content of a known file is."""
        return self.folder / "files" / file_id

    def take(self, content: Path, file: StoredFile, key_id: str) -> None:
        """Make `content` the file; doing it again does no harm."""
        with contextlib.suppress(FileNotFoundError):
            content.replace(self.path(file.id))
        with self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO files(id, key_id, purpose, size_bytes, body) "
                "VALUES (?, ?, ?, ?, ?)",
                (file.id, key_id, file.purpose, file.bytes, msgspec.json.encode(file)),
            )

    def file(self, key_id: str, file_id: str) -> StoredFile | None:
        """One of a key's own files."""
        found = self._db.execute(
            "SELECT body FROM files WHERE key_id = ? AND id = ?", (key_id, file_id)
        ).fetchone()
        return msgspec.json.decode(found[0], type=StoredFile) if found else None

    def files(self, key_id: str, page: Page, purpose: str) -> tuple[list[StoredFile], bool]:
        """A page of a key's files, and whether there are more; `purpose` may be empty."""
        return self._page("files", StoredFile, key_id, page, purpose)

    def stored_bytes(self, key_id: str) -> int:
        """Size of a key's files together."""
        (total,) = self._db.execute(
            "SELECT COALESCE(SUM(size_bytes), 0) FROM files WHERE key_id = ?", (key_id,)
        ).fetchone()
        return int(total)

    def delete_file(self, key_id: str, file_id: str) -> bool:
        """Whether there was such a file of this key; it is gone then."""
        with self._db:
            done = self._db.execute(
                "DELETE FROM files WHERE key_id = ? AND id = ?", (key_id, file_id)
            )
        if done.rowcount:
            self.path(file_id).unlink(missing_ok=True)
        return bool(done.rowcount)

    # ---- batches ----

    def save(self, batch: Batch, key_id: str) -> None:
        """Keep a batch as it is now."""
        with self._db:
            self._db.execute(
                "INSERT INTO batches(id, key_id, status, body) VALUES (?, ?, ?, ?) "
                "ON CONFLICT(id) DO UPDATE SET status = excluded.status, body = excluded.body",
                (batch.id, key_id, batch.status, msgspec.json.encode(batch)),
            )

    def batch(self, key_id: str, batch_id: str) -> Batch | None:
        """One of a key's own batches."""
        found = self._db.execute(
            "SELECT body FROM batches WHERE key_id = ? AND id = ?", (key_id, batch_id)
        ).fetchone()
        return msgspec.json.decode(found[0], type=Batch) if found else None

    def batches(self, key_id: str, page: Page) -> tuple[list[Batch], bool]:
        """A page of a key's batches, and whether there are more."""
        return self._page("batches", Batch, key_id, page, "")

    def open_batches(self) -> list[tuple[str, Batch]]:
        """All keys' unfinished batches, oldest first."""
        marks = ", ".join("?" * len(OPEN))
        rows = self._db.execute(
            f"SELECT key_id, body FROM batches WHERE status IN ({marks}) ORDER BY number",  # noqa: S608
            OPEN,
        )
        return [(key_id, msgspec.json.decode(body, type=Batch)) for key_id, body in rows]

    def journal(self, batch: Batch) -> tuple[Path, Path]:
        """Where a running batch's answers and errors are written."""
        folder = self.folder / "batches"
        return folder / f"{batch.id}.answers", folder / f"{batch.id}.errors"

    def close(self) -> None:
        """Let another process open the folder."""
        self._db.close()
        os.close(self._lock)

    def _page(
        self, table: str, kind: type[_Item], key_id: str, page: Page, purpose: str
    ) -> tuple[list[_Item], bool]:
        sign, order = ("<", "DESC") if page.newest_first else (">", "ASC")
        own = "key_id = :key_id"
        values: dict[str, str | int] = {"key_id": key_id, "limit": page.limit + 1}
        where = own
        if purpose:
            where += " AND purpose = :purpose"
            values["purpose"] = purpose
        if page.after:
            seen = f"SELECT number FROM {table} WHERE {own} AND id = :after"  # noqa: S608
            where += f" AND number {sign} ({seen})"
            values["after"] = page.after
        rows = self._db.execute(
            f"SELECT body FROM {table} WHERE {where} ORDER BY number {order} LIMIT :limit",  # noqa: S608
            values,
        ).fetchall()
        found = [msgspec.json.decode(body, type=kind) for (body,) in rows]
        return found[: page.limit], len(found) > page.limit
