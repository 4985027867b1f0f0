"""Blocks of code in all pages: each is of the language that it names, each command understood.

What answers requests is run as well: docs/clients.md by tests/clients, docs/batch.md by
tests/contract/test_batches_api.py, README.md by tests/e2e/test_chat.py.
"""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from rufus_serve.cli.commands import COMMANDS
from rufus_serve.cli.parser import Parser
from rufus_serve.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "benchmarks/*.md", "tests/*.md")
    for path in ROOT.glob(pattern)
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
ELSEWHERE = {
    "aws", "cd", "cosign", "curl", "docker", "eksctl", "export", "for", "git", "helm", "install",
    "kubectl", "open-webui", "lm_eval", "openssl", "pip", "terraform",
}  # fmt: skip
"""Programs that pages name beside ours: of them, the files that they are given must exist."""
MADE = {"deploy/eks/values-images.yaml", "benchmarks/results/hostile.json"}
"""Files that commands on the same page write."""
OF_THE_REPOSITORY = re.compile(r"(?:benchmarks|configs|deploy|docker|docs|tests)/[\w./-]*\w")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(path: Path) -> list[Block]:
    text, page = path.read_text(), str(path.relative_to(ROOT))
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, f.start()) + 1, f[1], f[2]) for f in fences]


def commands_in(text: str) -> list[list[str]]:
    """Words of each command: lines are joined as a shell does, variables set before it left out."""
    found, begun = [], ""
    for line in text.splitlines():
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation goes on
            begun += "\n"
            continue
        found += [command for part in _between_pipes(words) if (command := _without_settings(part))]
        begun = ""
    assert not begun, begun
    return found


def _between_pipes(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _without_settings(words: list[str]) -> list[str]:
    while words and (setting := re.match(r"(?:\w+=)?(\$\()?", words[0])) and setting[0]:
        words = [words[0].removeprefix(setting[0]), *words[1:]] if setting[1] else words[1:]
    return words


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
COMMAND_LINES = [(block, words) for block in SHELL for words in commands_in(block.text)]
SPANS = [
    (str(path.relative_to(ROOT)), span)
    for path in PAGES
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", path.read_text())
]


def parser_of(name: str) -> Parser:
    (command,) = [each for each in COMMANDS if each.name == name]
    parser = Parser(prog=name)
    command.load().add_arguments(parser)
    return parser


def where(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_there_are_pages_with_commands() -> None:
    assert len(PAGES) > 15
    assert len(COMMAND_LINES) > 80


@pytest.mark.parametrize("block", BLOCKS, ids=where)
def test_a_block_is_of_the_language_that_it_names(block: Block) -> None:
    match block.language:
        case "bash":
            done = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        case "python":
            ast.parse(block.text)
        case "json":
            assert [json.loads(line) for line in block.text.splitlines()]
        case "yaml":
            assert yaml.safe_load(block.text)
        case "javascript":
            assert block.page == "docs/clients.md"
        case _:
            # A picture: what looks like a command would be checked by nobody.
            first = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert first & {"make", *ELSEWHERE} == set()


@pytest.mark.parametrize(
    ("block", "words"), COMMAND_LINES, ids=[f"{where(b)} {w[0]}" for b, w in COMMAND_LINES]
)
def test_a_command_is_understood(block: Block, words: list[str]) -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if program == "rufus-serve":
        parser_of(arguments[0]).parse_args(arguments[1:])
    elif program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif program == "python":
        assert script_of(arguments).is_file()
    else:
        assert program in ELSEWHERE or (ROOT / words[0]).is_file(), words[0]
    assert missing(words) == []


def missing(words: list[str]) -> list[str]:
    """Files of this repository that are named and are not there."""
    named = {found[0] for word in words if (found := OF_THE_REPOSITORY.match(word))}
    return [name for name in sorted(named - MADE) if not (ROOT / name).exists()]


def script_of(arguments: list[str]) -> Path:
    """What `python` is told to run."""
    if arguments[0] == "-m":
        return ROOT / f"{arguments[1].replace('.', '/')}.py"
    return ROOT / arguments[0]


@pytest.mark.parametrize(
    ("page", "span"), [each for each in SPANS if each[1].startswith("rufus-serve ")]
)
def test_a_command_within_a_sentence_has_the_flags_that_it_names(page: str, span: str) -> None:
    name, *rest = shlex.split(span.removeprefix("rufus-serve "))
    if name.startswith("--"):
        assert name in {"--version", "--help"}
        return
    known = set(parser_of(name).flags())
    flags = {word.partition("=")[0] for word in rest if word.startswith("--") and word != "--"}
    assert flags <= known, page


@pytest.mark.parametrize(("page", "span"), [each for each in SPANS if each[1].startswith("make ")])
def test_a_target_within_a_sentence_exists(page: str, span: str) -> None:
    assert {word for word in span.split()[1:] if "=" not in word} <= TARGETS, page


@pytest.mark.parametrize(
    ("page", "span"), [each for each in SPANS if re.match(r"(?:\S*/)?python ", each[1])]
)
def test_a_script_within_a_sentence_exists(page: str, span: str) -> None:
    assert script_of(span.split()[1:]).is_file(), page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_sentences_name_exist(page: Path) -> None:
    folder = str(page.parent.relative_to(ROOT))
    spans = [span for where, span in SPANS if where == str(page.relative_to(ROOT))]
    assert [name for name in missing(spans) if not (ROOT / folder / name).exists()] == []


def test_a_command_that_is_not_understood_is_found() -> None:
    (words,) = commands_in("X=1 rufus-serve serve m --no-such-flag \\\n  4  # why\n")
    assert words == ["rufus-serve", "serve", "m", "--no-such-flag", "4"]
    with pytest.raises(ConfigError, match="no-such-flag"):
        parser_of("serve").parse_args(words[2:])
