"""Bounds on what a request asks to be compiled: JSON schemas, regular expressions, grammars.

Pure functions. They cut off what is far beyond use; `GrammarCompiler` bounds the time of the rest.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from rufus_serve.config.schema import LimitConfig

_REPETITION = re.compile(r"\{\s*(\d+)?\s*,?\s*(\d+)?\s*\}")
_COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
     "minContains", "maxContains"}
)  # fmt: skip


class GrammarRefused(Exception):
    """A schema, expression or grammar is out of bounds; the message says which."""


def check_grammar(kind: str, text: str, limits: LimitConfig) -> None:
    """Check a specification of vLLM's `kind` (json, regex, grammar, lark, choice, structural_tag).

    Raises:
        GrammarRefused: naming the limit, or there is nothing to choose from.
    """
    _within("kilobytes", len(text.encode()) / 1000, "max_grammar_kb", limits)
    if kind in ("regex", "grammar", "lark"):
        _check_repetitions(text, limits)
    elif kind == "choice":
        choices = json.loads(text)
        if not choices:
            raise GrammarRefused("structured_outputs.choice is empty; name at least one choice")
        _within("choices", len(choices), "max_schema_enum", limits)
    elif kind in ("json", "structural_tag"):
        _check_schema(_loads(text), limits)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarRefused(f"the schema is not valid JSON: {error}") from error


def _check_schema(schema: object, limits: LimitConfig) -> None:
    num_properties = num_values = 0
    for depth, node in _nodes(schema):
        _within("levels of nesting", depth, "max_schema_depth", limits)
        if not isinstance(node, dict):
            continue
        for name in ("properties", "patternProperties"):
            value = node.get(name)
            num_properties += len(value) if isinstance(value, dict) else 0
        values = node.get("enum")
        num_values += len(values) if isinstance(values, list) else 0
        for name in _COUNTS & node.keys():
            if isinstance(node[name], int):
                _within(name, node[name], "max_repetition", limits)
        pattern = node.get("pattern")
        if isinstance(pattern, str):
            _check_repetitions(pattern, limits)
        _within("properties", num_properties, "max_schema_properties", limits)
        _within("enum values", num_values, "max_schema_enum", limits)


def _nodes(schema: object) -> Iterator[tuple[int, object]]:
    """Every object and array with its depth."""
    waiting = [(1, schema)]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [(depth + 1, each) for each in below if isinstance(each, dict | list)]


def _check_repetitions(pattern: str, limits: LimitConfig) -> None:
    for match in _REPETITION.finditer(pattern):
        for number in match.groups():
            if number:
                _within("repetitions", int(number[:12]), "max_repetition", limits)


def _within(what: str, value: float, name: str, limits: LimitConfig) -> None:
    most = getattr(limits, name)
    if value > most:
        raise GrammarRefused(
            f"the structured output has {value:g} {what}; at most {most:g} are allowed "
            f"(limits.{name})"
        )
