"""Reads a YAML settings file into values that remember their line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rufus_serve.errors import ConfigError


@dataclass(frozen=True)
class Placed:
    """A value of a file and where it stands."""

    value: Any
    place: str
    """FILE:LINE."""


def read(path: Path, *, free: frozenset[str]) -> dict[str, Placed]:
    """Dotted keys and their values; mappings under a key in `free` stay whole.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of plain keys.
    """
    root = _compose(path, _text(path))
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{_place(path, root)}: settings must be lines such as 'nodes: 2'")
    found: dict[str, Placed] = {}
    _collect(path, root, prefix="", free=free, found=found)
    return found


def parse_value(text: str) -> Any:
    """A value of a variable or flag, read as YAML.

    Raises:
        ValueError: it is not YAML; the message is one line.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_problem(error)}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: not UTF-8 at byte {error.start}") from error


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{position}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_problem(error)}") from error


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        text = " ".join(part for part in (error.context, error.problem) if part)
        return text.replace("\n", " ")
    return " ".join(str(error).split())


def _collect(
    path: Path,
    node: yaml.MappingNode,
    *,
    prefix: str,
    free: frozenset[str],
    found: dict[str, Placed],
) -> None:
    for name, child in _entries(path, node):
        key = prefix + name
        if isinstance(child, yaml.MappingNode) and key not in free and not prefix:
            _collect(path, child, prefix=f"{key}.", free=free, found=found)
        elif key in found:
            raise ConfigError(f"{_place(path, child)}: {key} is given twice in this file")
        else:
            _check_tree(path, child, ())
            found[key] = Placed(_construct(path, child), _place(path, child))


def _entries(path: Path, node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
    entries: list[tuple[str, yaml.Node]] = []
    lines: dict[str, int] = {}
    for name_node, child in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise ConfigError(f"{_place(path, name_node)}: a key must be a plain word")
        name, line = name_node.value, name_node.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{path}:{line}: {name} is given twice, first in line {lines[name]}")
        lines[name] = line
        entries.append((name, child))
    return entries


def _check_tree(path: Path, node: yaml.Node, ancestors: tuple[yaml.Node, ...]) -> None:
    """Refuse repeated keys and self-reference below a value that stays whole."""
    if node in ancestors:
        raise ConfigError(f"{_place(path, node)}: this value contains itself")
    if isinstance(node, yaml.MappingNode):
        for _, child in _entries(path, node):
            _check_tree(path, child, (*ancestors, node))
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_tree(path, child, (*ancestors, node))


def _construct(path: Path, node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        problem = _problem(error) if isinstance(error, yaml.YAMLError) else str(error)
        raise ConfigError(f"{_place(path, node)}: {problem}") from error
    finally:
        loader.dispose()


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
