"""Files and functions stay of a size that can be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 40


def functions(file: Path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds))


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "deploy"])
def test_no_file_and_no_function_is_too_long(folder: str):
    files = list((ROOT / folder).glob("**/*.py"))
    assert files
    long_files = [f.name for f in files if len(f.read_text().splitlines()) > LINES_OF_A_FILE]
    long_functions = [
        f"{file.name} {each.name}"
        for file in files
        for each in functions(file)
        if each.end_lineno - each.lineno >= LINES_OF_A_FUNCTION
    ]
    assert (long_files, long_functions) == ([], [])
