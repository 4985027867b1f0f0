"""`Finding`: one thing that a check found, why it matters, and the command that fixes it."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["error", "warning", "note", "ok", "skipped"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note", "ok", "skipped")
"""Worst first."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check says of one host, or of a pair of hosts."""

    check: str
    level: Level
    what: str
    """What is so, with the values."""
    why: str = ""
    """Why it matters to this server."""
    fix: str = ""
    """What to run or set; several commands are joined by `; `."""
    node: str = ""
    """The host it is about; empty until the report is put together."""
    exit_code: int = 0
    """Of an error: what `rufus-serve serve` would end with because of it (see `errors`)."""


class Findings:
    """Makes the findings of one check."""

    def __init__(self, check: str) -> None:
        self._check = check

    def ok(self, what: str) -> Finding:
        """All is well."""
        return Finding(check=self._check, level="ok", what=what)

    def skipped(self, reason: str) -> Finding:
        """The check does not apply here, or cannot be made."""
        return Finding(check=self._check, level="skipped", what=reason)

    def note(self, what: str, *, why: str = "", fix: str = "") -> Finding:
        """Worth knowing; nothing will fail."""
        return Finding(check=self._check, level="note", what=what, why=why, fix=fix)

    def warning(self, what: str, *, why: str, fix: str) -> Finding:
        """Serving may fail later, or be slower than it could."""
        return Finding(check=self._check, level="warning", what=what, why=why, fix=fix)

    def error(self, what: str, *, why: str, fix: str, code: int) -> Finding:
        """Serving will fail, with exit code `code`."""
        return Finding(
            check=self._check, level="error", what=what, why=why, fix=fix, exit_code=code
        )


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted by level; within one in the order they were found."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
