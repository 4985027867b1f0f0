"""docs/neuron.md names tests and modules; all of them are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs/neuron.md").read_text().split("## The traps")[1].split("\n")
    if re.search(r"\| [CHKNQSU] `", line)
]
FILES = {
    "C": (ROOT / "tests/nxdi/test_guards.py").read_text(),
    "H": (ROOT / "tests/nxdi/test_nxdi_hybrid.py").read_text(),
    "K": (ROOT / "tests/nxdi/test_nxdi_candidates.py").read_text(),
    "N": (ROOT / "tests/nxdi/test_nxdi_drafts.py").read_text(),
    "Q": (ROOT / "tests/nxdi/test_nxdi_int8.py").read_text(),
    "S": (ROOT / "tests/nxdi/test_start_guards.py").read_text(),
}
UNIT = {path.name for path in (ROOT / "tests/unit").rglob("test_*.py")}
MODULES = {
    path.name
    for folder in ("neuron", "layouts")
    for path in (ROOT / "src/rufus_serve/runtime" / folder).glob("*.py")
}


def test_the_table_is_found():
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_guard_and_test_of_the_table_exists(row):
    _, guard, tests = row
    for module in re.findall(r"`(\w+\.py)`", guard):
        assert module in MODULES
    label, named = tests[0], re.findall(r"`([^`]+)`", tests)
    assert named
    for name in named:
        if label == "U":
            assert name in UNIT
        else:
            assert f"def test_{name.rstrip('…')}" in FILES[label]
