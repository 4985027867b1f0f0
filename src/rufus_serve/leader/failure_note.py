"""How an engine process that dies tells the API process why."""

import os
from pathlib import Path

import msgspec

from rufus_serve import errors
from rufus_serve.errors import LeaderError, RufusError

NOTE_VARIABLE = "RUFUS_LEADER_FAILURE"
"""Environment variable with the path of the note."""


class FailureNote:
    """A small file that the dying engine writes once and the API process reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_environment(cls) -> "FailureNote":
        """The note of this leader, wherever its processes agreed to keep it."""
        return cls(Path(os.environ[NOTE_VARIABLE]))

    def write(self, exit_code: int, message: str) -> None:
        """Leave a note, unless there is one: the first error is the cause."""
        if not self._path.exists():
            partial = self._path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode((exit_code, message)))
            partial.rename(self._path)

    def error(self) -> RufusError | None:
        """The error noted, with its exit code; None if there is no note."""
        try:
            exit_code, message = msgspec.json.decode(self._path.read_bytes(), type=tuple[int, str])
        except (OSError, msgspec.DecodeError):
            return None
        return errors.of(exit_code, message, otherwise=LeaderError)
