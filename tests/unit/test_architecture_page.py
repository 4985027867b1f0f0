"""docs/architecture.md names files and functions; all of them are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/rufus_serve"
PAGE = " ".join((ROOT / "docs/architecture.md").read_text().split())
NAMED = sorted(set(re.findall(r"`(?!src/)((?:\w+/)+\w*(?:\.py)?)(?:: (\w+))?`", PAGE)))
LAYERS = re.search(r"upper ones importing lower ones: (.*?) vLLM is", PAGE)


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_it_names_most_of_the_road():
    assert len(NAMED) >= 40


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part)
def test_what_it_names_exists(path: str, name: str):
    file = ROOT / path if path.startswith("tests/") else SOURCE / path
    assert file.exists()
    if name:
        assert name in names_in(file)


def test_its_layers_are_the_ones_that_are_checked():
    contract = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    checked = [
        {part.strip() for part in line.replace("rufus_serve.", "").split("|")}
        for line in re.findall(r'"([^"]+)"', contract)
    ]
    told = [set(re.findall(r"`(\w+)`", part)) for part in LAYERS[1].split(">")]
    assert told == checked
