"""`Journal`: the answers of a batch, on disk; what is there is not asked again.

A line is written in one call and counts once it ends in a newline, so that whatever kills the
process leaves whole lines and at most one torn one, which the next run cuts off.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rufus_serve.batch.lines import key_of
from rufus_serve.errors import BatchError


class Journal:
    """Two files that lines are added to; one thread, and one process at a time."""

    def __init__(self, answers: Path, errors: Path, *, again: bool = False) -> None:
        """Take up what earlier runs left; `again`: forget the errors, so that they are asked anew.

        Raises:
            BatchError: a file cannot be written, is another run's, or holds something else.
        """
        self._files = (_Lines(answers), _Lines(errors))
        self.completed, self.failed = 0, 0
        try:
            if again:
                self._files[1].clear()
            self.done = {key for file in self._files for key in file.whole()}
        except BaseException:
            self.close()
            raise
        self.completed, self.failed = (file.count for file in self._files)

    def answer(self, key: str | int, line: bytes) -> None:
        """Keep an answer.

        Raises:
            BatchError: the disk refuses; the file is as it was before.
        """
        self._files[0].add(line)
        self.done.add(key)
        self.completed += 1

    def fail(self, key: str | int, line: bytes) -> None:
        """Keep a failure, apart from the answers.

        Raises:
            BatchError: as `answer`.
        """
        self._files[1].add(line)
        self.done.add(key)
        self.failed += 1

    def close(self) -> None:
        """Have the disk hold all, and let another process write."""
        for file in self._files:
            file.close()


class _Lines:
    """One file of whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        with self._telling():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise BatchError(f"{path} is being written by another process") from error
        self._size = os.fstat(self._fd).st_size

    def whole(self) -> Iterator[str | int]:
        """Keys of the lines that are there; a torn last one is cut off."""
        whole_bytes = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    yield key_of(line)
                except ValueError as error:
                    place = f"{self._path}:{self.count + 1}"
                    raise BatchError(
                        f"{place} is no answer of a batch; choose another file"
                    ) from error
                whole_bytes += len(line)
                self.count += 1
        with self._telling():
            os.ftruncate(self._fd, whole_bytes)
        self._size = whole_bytes

    def clear(self) -> None:
        """Drop all lines."""
        with self._telling():
            os.ftruncate(self._fd, 0)
        self._size = 0

    def add(self, line: bytes) -> None:
        """Append one line, or leave the file as it was."""
        try:
            written = os.pwrite(self._fd, line, self._size)
            if written < len(line):
                written += os.pwrite(self._fd, line[written:], self._size + written)
            if written < len(line):
                raise OSError(None, "the disk took part of a line only")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise BatchError(
                f"{self._path} cannot be written: {error.strerror}; what is in it is kept, and "
                "the same command goes on from there"
            ) from error
        self._size += len(line)
        self.count += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BatchError(f"{self._path} cannot be written: {error.strerror}") from error
