"""`Builder`: what one runtime's artifacts are, and how each unit of them is made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from rufus_serve.artifacts.identity import Identity
from rufus_serve.runtime.base import Progress


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What making the artifacts takes, in bytes."""

    memory: int
    """Most that is in host memory at once."""
    disk: int
    """Size of all files."""
    reason: str
    """Where the numbers come from."""


class Builder(Protocol):
    """Makes the artifacts of one configuration, unit by unit.

    A unit is made as a whole or not at all; a killed compile goes on with the next one.
    """

    def identity(self) -> Identity:
        """What the artifacts depend on."""

    def need(self) -> Need:
        """What making all of them takes."""

    def units(self) -> Sequence[str]:
        """Names of the units, in the order they are made."""

    def build(self, unit: str, folder: Path, progress: Progress) -> Mapping[str, Sequence[int]]:
        """Make `unit` in `folder`; each file's relative path with the nodes that load it.

        Raises:
            ModelError: the checkpoint cannot be used.
            ArtifactError: the compiler failed; the message is its own.
        """
