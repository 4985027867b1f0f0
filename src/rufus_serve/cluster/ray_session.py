"""`RaySession`: what one run of Ray leaves on this host, so that all of it can be taken away.

Ray's processes outlive one another in odd ways: an agent whose raylet was killed waits for the
GCS that is gone as well. But all of them stay in the POSIX session that they were started in,
which followers, each the leader of a session of its own, are not part of.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_LONGEST_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1")
"""The name of a Unix socket has 107 bytes (Linux)."""
_RAYS = "r"
_RAYLET = "raylet"
_GONE_S = 2.0
_POLL_S = 0.02


class RaySession:
    """A private folder, and the processes of one session."""

    def __init__(self, folder: Path, *, session_id: int = 0) -> None:
        """Of the POSIX session `session_id`; 0 begins one with the first process started."""
        self.folder = folder
        self._session_id = session_id
        self._raylet: psutil.Process | None = None

    @property
    def ray_folder(self) -> Path:
        """Ray's own, in ours: Ray lets everybody into it."""
        return self.folder / _RAYS

    @classmethod
    def in_new_folder(cls, parent: Path | None = None) -> "RaySession":
        """One in a new folder of `parent` or, where Ray's sockets do not fit, of a shorter one."""
        temporary = Path(tempfile.gettempdir())
        places = [parent or temporary, temporary]
        place = next((each for each in places if _has_room(each)), Path("/tmp"))  # noqa: S108
        return cls(Path(tempfile.mkdtemp(prefix="ray-", dir=place)))

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process of the session, with `options` of `subprocess.Popen`."""
        process = subprocess.Popen(command, start_new_session=not self._session_id, **options)
        self._session_id = self._session_id or process.pid
        return process

    def has_raylet(self) -> bool:
        """Whether its raylet runs; of one that ended in order `ray start` says nothing."""
        if self._raylet is None:
            named = (each for each in self._processes() if _name_of(each) == _RAYLET)
            self._raylet = next(named, None)
        return self._raylet is not None and _runs(self._raylet)

    def clear(self, *, keep_files: bool = False) -> None:
        """Kill what is left of it, but this process, and delete its folder; may be called twice."""
        deadline = time.monotonic() + _GONE_S
        # What is being started while we look is found the next time round.
        while left := list(self._processes()):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(_POLL_S)
            if time.monotonic() > deadline:
                break
        if not keep_files:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> Iterator[psutil.Process]:
        if not self._session_id:
            return
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_other = process.pid != os.getpid()
                if os.getsid(process.pid) == self._session_id and is_other and _runs(process):
                    yield process


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _name_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def _has_room(place: Path) -> bool:
    return len(str(place)) + len(f"/ray-12345678/{_RAYS}") <= _LONGEST_FOLDER
