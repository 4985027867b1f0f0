import re
import shlex
from pathlib import Path

import pytest

from rufus_serve.cli.commands import COMMANDS
from rufus_serve.cli.parser import Parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL_LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.split("\n")
]
COMMAND_LINES = [
    words[index + 1 :]
    for line in SHELL_LINES
    if "rufus-serve" in line and (words := shlex.split(line, comments=True))
    for index, word in enumerate(words)
    if word.endswith("rufus-serve")
]
"""What follows `rufus-serve` in each line, word by word."""


def test_it_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_every_command_line_is_understood(words: list[str]):
    command = next(each for each in COMMANDS if each.name == words[0])
    module = command.load()
    parser = Parser(prog=command.name)
    module.add_arguments(parser)
    parser.parse_args(words[1:])


def test_every_make_target_exists():
    named = set(re.findall(r"`?make ([a-z-]+)", "\n".join(SHELL_LINES)))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_file_that_it_names_exists():
    named = re.findall(
        r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", README.split("## Read the code")[1].split("Paths are")[0]
    )
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / "src/rufus_serve" / name).exists()] == []


def test_every_configuration_that_it_names_exists():
    named = set(re.findall(r"configs/[\w.-]+\.yaml", README))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
