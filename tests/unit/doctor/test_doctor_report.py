import json

import pytest

from rufus_serve.cli.doctor_table import print_report, report_as_json
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.report import DoctorReport, on_node

SAY = Findings("ports")
OK, SKIPPED = SAY.ok("8000 can be listened on"), SAY.skipped("runtime is cpu")
WARNING = SAY.warning("slow", why="because", fix="make it fast")
ERRORS = [SAY.error("taken", why="because", fix="kill 1", code=code) for code in (4, 3)]


def of(*findings: Finding) -> DoctorReport:
    return DoctorReport.of(["a"], on_node("a", findings))


@pytest.mark.parametrize(
    ("findings", "code", "strict_code"),
    [
        ((), 0, 0),
        ((OK, SKIPPED), 0, 0),
        ((OK, WARNING), 0, 14),
        ((WARNING, *ERRORS), 4, 4),
    ],
)
def test_the_first_error_decides_the_exit_code(
    findings: tuple[Finding, ...], code: int, strict_code: int
):
    assert of(*findings).exit_code(strict=False) == code
    assert of(*findings).exit_code(strict=True) == strict_code


def test_json_has_the_worst_first_with_its_node_and_fix():
    value = json.loads(report_as_json(of(OK, WARNING, *ERRORS), strict=True))
    assert value["exit_code"] == 4
    assert value["counts"] == {"error": 2, "warning": 1, "note": 0, "ok": 1, "skipped": 0}
    assert [each["level"] for each in value["findings"]] == ["error", "error", "warning", "ok"]
    assert value["findings"][0] == {
        "check": "ports", "level": "error", "what": "taken", "why": "because", "fix": "kill 1",
        "node": "a", "exit_code": 4,
    }  # fmt: skip


def test_the_table_names_hosts_only_where_there_are_several(capsys: pytest.CaptureFixture):
    print_report(of(OK, WARNING, SKIPPED))
    shown = capsys.readouterr().out
    assert shown.index("slow") < shown.index("8000 can be listened on")
    assert "fix: make it fast" in shown
    assert "skipped (runtime is cpu): ports" in shown
    assert "a: 1 warning, 1 ok, 1 skipped" in shown
    several = [*on_node("a", [OK, WARNING]), *on_node("b", [OK])]
    print_report(DoctorReport.of(["a", "b"], several))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["warning", "ports", "a"]
    (all_line,) = [line for line in lines if "8000" in line]
    assert all_line.split()[:3] == ["ok", "ports", "all"]


def test_words_of_other_programs_are_not_taken_for_markup(capsys: pytest.CaptureFixture):
    print_report(of(SAY.note("fails: [/bold] [red]no such device[/red]")))
    assert "[/bold] [red]no such device[/red]" in capsys.readouterr().out
