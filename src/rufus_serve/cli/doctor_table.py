"""A doctor's report as a table for readers and as JSON for programs."""

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rufus_serve.doctor.finding import Finding, Level
from rufus_serve.doctor.report import DoctorReport

_STYLES: dict[Level, str] = {
    "error": "bold red", "warning": "bold yellow", "note": "cyan", "ok": "green", "skipped": "dim",
}  # fmt: skip
_WIDTH = 100
"""Of output that is not a terminal; a narrower terminal wraps lines."""


def report_as_json(report: DoctorReport, *, strict: bool) -> str:
    """All findings, worst first, with the exit code they make."""
    value = {
        "exit_code": report.exit_code(strict=strict),
        "counts": report.counts,
        "nodes": report.nodes,
        "findings": report.findings,
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def print_report(report: DoctorReport) -> None:
    """Print the table to standard output; the worst comes first, what was skipped last."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _WIDTH))
    several = len(report.nodes) > 1
    table = Table(box=None, pad_edge=False, show_header=False)
    for wraps in (False, False, *([True] * several), True):
        table.add_column(no_wrap=not wraps, overflow="fold")
    for finding, nodes in _alike(report).items():
        if finding.level != "skipped":
            where = [_where(nodes, report)] if several else []
            level = Text(finding.level, _STYLES[finding.level])
            table.add_row(level, finding.check, *where, _told(finding))
    console.print(table)
    _print_skipped(console, report)
    counts = ", ".join(f"{count} {level}" for level, count in report.counts.items() if count)
    console.print(f"\n{', '.join(report.nodes)}: {counts}", markup=False)


def _alike(report: DoctorReport) -> dict[Finding, list[str]]:
    """Findings that differ in nothing but the host, with their hosts."""
    hosts: dict[Finding, list[str]] = {}
    for finding in report.findings:
        common = msgspec.structs.replace(finding, node="")
        hosts.setdefault(common, []).append(finding.node)
    return hosts


def _where(nodes: list[str], report: DoctorReport) -> str:
    return "all" if len(nodes) == len(report.nodes) else ", ".join(nodes)


def _told(finding: Finding) -> Text:
    text = Text(finding.what)
    if finding.why:
        text.append(f"\nwhy: {finding.why}", "dim")
    if finding.fix:
        text.append(f"\nfix: {finding.fix}", "bold")
    return text


def _print_skipped(console: Console, report: DoctorReport) -> None:
    """Checks that do not apply, by reason, each once."""
    reasons: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.level == "skipped":
            checks = reasons.setdefault(finding.what, [])
            if finding.check not in checks:
                checks.append(finding.check)
    for reason, checks in reasons.items():
        console.print(f"skipped ({reason}): {', '.join(checks)}", style="dim", markup=False)
