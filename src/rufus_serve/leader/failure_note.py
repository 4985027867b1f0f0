"""How an engine process that dies tells the API process that no other one would do better."""

from pathlib import Path

import msgspec

from rufus_serve import errors
from rufus_serve.errors import LeaderError, RufusError


class FailureNote:
    """A small file that a dying engine writes once and the API process reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

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
