"""`Verified`: which files were found good, so that a restart need not hash them again."""

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from rufus_serve.artifacts.manifest import write_atomically


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """What changes when a file is written or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of `path` now. Raises OSError."""
        found = path.stat()
        return cls(
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            inode=found.st_ino,
            device=found.st_dev,
        )


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    state: FileState


class Verified:
    """Notes in `folder`, one file each, so that processes of a host need no lock.

    What cannot be read or written is forgotten: the file is hashed once more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def knows(self, path: Path, sha256: str) -> bool:
        """Whether `path` had this checksum and was not touched since."""
        try:
            note = msgspec.json.decode(self._note(path).read_bytes(), type=_Note)
            return note == _Note(sha256=sha256, state=FileState.of(path))
        except (OSError, msgspec.DecodeError):
            return False

    def note(self, path: Path, sha256: str, state: FileState) -> None:
        """Remember that `path` had this checksum when its state was `state`."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            note = _Note(sha256=sha256, state=state)
            write_atomically(self._note(path), msgspec.json.encode(note))

    def _note(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        return self._folder / f"{name}.json"
