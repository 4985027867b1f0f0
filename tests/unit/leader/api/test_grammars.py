"""Bounds on grammars, and which of them no text can match."""

import json
from typing import Any

import pytest

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.grammar_emptiness import unproductive_rule
from rufus_serve.leader.api.grammar_limits import GrammarRefused, check_grammar

xgrammar = pytest.importorskip("xgrammar")
LIMITS = LimitConfig()
TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"v": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v"],
}
OBJECT_A = {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}}
OBJECT_B = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}
EACH_OTHER = {"$defs": {"a": OBJECT_A, "b": OBJECT_B}, "$ref": "#/$defs/a"}
ENDLESS = {"$defs": {"a": OBJECT_B | {"required": ["a"]}}, "$ref": "#/$defs/a"}
ITSELF = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("kind", "wanted", "limit"),
    [
        ("json", {"properties": {f"p{n}": {} for n in range(257)}}, "max_schema_properties"),
        ("json", {"enum": list(range(1001))}, "max_schema_enum"),
        ("json", nested(40), "max_schema_depth"),
        ("json", {"type": "string", "maxLength": 5000}, "max_repetition"),
        ("json", {"type": "string", "pattern": "a{5000}"}, "max_repetition"),
        ("json", {"description": "x" * 70_000}, "max_grammar_kb"),
        ("regex", "a{1,9999}", "max_repetition"),
        ("regex", "a" * 70_000, "max_grammar_kb"),
        ("grammar", 'root ::= "a"{99999}', "max_repetition"),
        ("choice", ["x"] * 1001, "max_schema_enum"),
        ("structural_tag", {"format": {"properties": {str(n): {} for n in range(300)}}},
         "max_schema_properties"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_names_the_limit(kind: str, wanted: Any, limit: str) -> None:
    text = wanted if isinstance(wanted, str) else json.dumps(wanted)
    with pytest.raises(GrammarRefused, match=f"limits.{limit}"):
        check_grammar(kind, text, LIMITS)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("json", TREE),
        ("json", {"properties": {f"p{n}": {"type": "string"} for n in range(200)}}),
        ("json", {"type": "string", "maxLength": 4000, "pattern": "[a-z]{2,40}"}),
        ("regex", r"\d{4}-\d{2}-\d{2}"),
        ("choice", ["yes", "no"]),
    ],
)
def test_what_people_ask_for_is_within_bounds(kind: str, wanted: Any) -> None:
    check_grammar(kind, wanted if isinstance(wanted, str) else json.dumps(wanted), LIMITS)


def printed(kind: str, wanted: Any) -> str:
    make = {
        "json": lambda: xgrammar.Grammar.from_json_schema(json.dumps(wanted)),
        "regex": lambda: xgrammar.Grammar.from_regex(wanted),
        "grammar": lambda: xgrammar.Grammar.from_ebnf(wanted),
        "lark": lambda: xgrammar.Grammar.from_lark(wanted),
    }
    return str(make[kind]())


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("json", ENDLESS),
        ("json", ITSELF),
        ("regex", r"[^\s\S]"),
        ("regex", r"a[^\s\S]"),
        ("regex", r"(a[^\s\S])|b"),
        ("grammar", "root ::= root"),
        ("grammar", 'root ::= "a" x | "b"\nx ::= "c" x'),
    ],
)
def test_what_no_text_can_complete_is_found(kind: str, wanted: Any) -> None:
    assert unproductive_rule(printed(kind, wanted))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("json", TREE),
        ("json", EACH_OTHER),
        ("json", {}),
        ("json", {"type": "array", "minItems": 2, "items": {"enum": ["a]", 'b"[']}}),
        ("json", {"type": "string", "format": "date-time"}),
        ("json", {"type": "object", "additionalProperties": False}),
        ("regex", r"[a-z]{3,5}[^a]+(foo|bar)?\d*"),
        ("grammar", 'root ::= root "a" | "b"'),
        ("grammar", 'root ::= (""*)*'),
        ("lark", 'start: "a" | "b" start'),
    ],
)  # fmt: skip
def test_what_ends_is_let_through_recursion_included(kind: str, wanted: Any) -> None:
    assert unproductive_rule(printed(kind, wanted)) == ""
