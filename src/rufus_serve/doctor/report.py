"""`DoctorReport`: all findings about all hosts, and the exit code they make."""

from collections.abc import Iterable

import msgspec

from rufus_serve.doctor.finding import LEVELS, Finding, Level, worst_first
from rufus_serve.errors import DoctorWarning


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the doctor says."""

    nodes: tuple[str, ...]
    """Hosts that were examined, the leader's first."""
    findings: tuple[Finding, ...]
    """Worst first."""

    @classmethod
    def of(cls, nodes: Iterable[str], findings: Iterable[Finding]) -> "DoctorReport":
        """The report of `findings`, in the order they were found."""
        return cls(nodes=tuple(nodes), findings=tuple(worst_first(findings)))

    @property
    def counts(self) -> dict[Level, int]:
        """Findings per level, worst first."""
        return {level: sum(finding.level == level for finding in self.findings) for level in LEVELS}

    def exit_code(self, *, strict: bool) -> int:
        """What `serve` would end with for the first error; 0 if there is none.

        If `strict`, warnings without an error end with a code of their own.
        """
        errors = [finding for finding in self.findings if finding.level == "error"]
        if errors:
            return errors[0].exit_code
        return DoctorWarning.exit_code if strict and self.counts["warning"] else 0


def on_node(node: str, findings: Iterable[Finding]) -> list[Finding]:
    """`findings`, marked with the host they are about."""
    return [msgspec.structs.replace(finding, node=node) for finding in findings]
