"""What an engine process is told when it is forked."""

import contextlib
import os
import uuid
from pathlib import Path

import msgspec

from rufus_serve.errors import LeaderError

ENGINE_VARIABLE = "RUFUS_ENGINE_SPEC"
"""Environment variable with the `EngineSpec` (JSON)."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One incarnation of a group's engine."""

    engine_id: str
    """Unique, so that followers and supervisor tell a new engine from the one before it."""
    group: int
    folder: str
    """Where its sockets and its `FailureNote` are."""
    api_pid: int
    """The API process; without it the engine is of no use."""

    @classmethod
    def new(cls, group: int, folder: str) -> "EngineSpec":
        """Another engine of `group`, for the calling process."""
        return cls(
            engine_id=f"{group}-{uuid.uuid4().hex[:8]}",
            group=group,
            folder=folder,
            api_pid=os.getpid(),
        )

    @classmethod
    def from_environment(cls) -> "EngineSpec":
        """That of the calling engine process.

        Raises:
            LeaderError: the process was not forked as an engine.
        """
        try:
            return msgspec.json.decode(os.environ[ENGINE_VARIABLE], type=cls)
        except KeyError as error:
            raise LeaderError(f"{ENGINE_VARIABLE} is not set; this is no engine process") from error

    def enter_environment(self) -> None:
        """Leave word for `from_environment` in this process."""
        os.environ[ENGINE_VARIABLE] = msgspec.json.encode(self).decode()

    def leave_word(self, error: BaseException) -> None:
        """Write down why this engine ends, for the API process to repeat."""
        with contextlib.suppress(OSError):
            self.path("word").write_text(f"{type(error).__name__}: {error}")

    def last_word(self) -> str:
        """What it wrote down; empty if it did not."""
        try:
            return self.path("word").read_text()
        except OSError:
            return ""

    def address(self, kind: str) -> str:
        """ZeroMQ address of its socket of that kind."""
        return f"ipc://{self.path(kind)}"

    def path(self, kind: str) -> Path:
        """Path of its socket or note of that kind."""
        return Path(self.folder) / f"{self.engine_id}.{kind}"
