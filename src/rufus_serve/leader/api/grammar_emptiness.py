"""Finds rules of a grammar, as xgrammar prints it, that no text can ever complete.

Sampling within such a rule ends where no token is allowed, and vLLM fails the request then with
a server's error. Examples: the regular expression `a[^\\s\\S]`, a schema that requires itself.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s+|(?P<text>"(?:[^"\\]|\\.)*")|(?P<chars>\[(?:[^\]\\]|\\.)*\][*+?]?)"""
    r"""|(?P<lookahead>\(=)|(?P<name>[A-Za-z_][\w.-]*)(?P<times>\{\d+(?:,\s*-?\d*)?\})?"""
    r"""|(?P<sign>[()|])|(?P<other>.)""",
    re.DOTALL,
)
_ESCAPES = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0, "a": 7, "b": 8, "e": 27}
_LAST = 0x10FFFF


class _Item(NamedTuple):
    """One thing of a sequence: a rule that must be completed, or what never can be."""

    rule: str = ""
    is_dead: bool = False


Sequences = list[list[_Item]]


def unproductive_rule(printed: str) -> str:
    """A rule that generation can enter and never complete; empty if there is none.

    Grammars of other forms than rules of alternatives are left to vLLM.
    """
    rules = {}
    for line in printed.splitlines():
        name, found, right = line.partition(" ::= ")
        if found:
            alternatives = _parse(right)
            if alternatives is None:
                return ""
            rules[name.strip()] = alternatives
    productive = _productive(rules)
    for name in _reachable(rules):
        for sequence in rules[name]:
            if not _completes(sequence, productive, rules):
                return name
    return ""


def _productive(rules: dict[str, Sequences]) -> set[str]:
    found: set[str] = set()
    grew = True
    while grew:
        more = {
            name
            for name, sequences in rules.items()
            if name not in found and any(_completes(each, found, rules) for each in sequences)
        }
        grew = bool(more)
        found |= more
    return found


def _completes(sequence: list[_Item], productive: set[str], rules: dict[str, Sequences]) -> bool:
    return all(
        not item.is_dead and (item.rule in productive or item.rule not in rules)
        for item in sequence
    )


def _reachable(rules: dict[str, Sequences]) -> list[str]:
    waiting, seen = ["root"], {"root"}
    while waiting:
        for sequence in rules.get(waiting.pop(), ()):
            new = {item.rule for item in sequence if item.rule in rules} - seen
            seen |= new
            waiting += new
    return [name for name in rules if name in seen]


def _parse(right: str) -> Sequences | None:
    """The alternatives, nested groups read as if written out; None if it has another form."""
    alternatives: Sequences = [[]]
    depth = 0
    for match in _tokens(right):
        kind, word = match.lastgroup, match.group()
        if kind == "lookahead":
            break
        if kind == "other":
            return None
        if word in "()":
            depth += 1 if word == "(" else -1
        elif word == "|":
            if depth > 1:
                return None
            alternatives.append([])
        elif kind == "chars":
            alternatives[-1].append(
                _Item(is_dead=not word.endswith(("*", "?")) and _is_empty(word))
            )
        elif match["name"] and not (match["times"] or "").startswith(("{0,", "{0}")):
            alternatives[-1].append(_Item(rule=match["name"]))
    return alternatives


def _tokens(right: str) -> Iterator[re.Match[str]]:
    return (match for match in _TOKEN.finditer(right) if not match.group().isspace())


def _is_empty(chars: str) -> bool:
    """Whether a character class such as `[^\\0-\\U0010ffff]` holds no character."""
    inner = chars.rstrip("+")[1:-1]
    if not inner.startswith("^"):
        return not inner
    reached = 0
    for low, high in sorted(_ranges(inner[1:])):
        if low > reached:
            return False
        reached = max(reached, high + 1)
    return reached > _LAST


def _ranges(inner: str) -> Iterator[tuple[int, int]]:
    points: list[int] = []
    dashes: set[int] = set()
    for match in re.finditer(
        r"\\x(?P<x>[0-9a-fA-F]{2})|\\u(?P<u>[0-9a-fA-F]{4})|\\U(?P<U>[0-9a-fA-F]{8})"
        r"|\\(?P<e>.)|(?P<dash>-)|(?P<c>.)",
        inner,
        re.DOTALL,
    ):
        code = match["x"] or match["u"] or match["U"]
        if match["dash"] and points:
            dashes.add(len(points))
        elif code:
            points.append(int(code, 16))
        elif match["e"]:
            points.append(_ESCAPES.get(match["e"], ord(match["e"])))
        else:
            points.append(ord(match.group()))
    index = 0
    while index < len(points):
        ends = index + 1 in dashes and index + 1 < len(points)
        yield points[index], points[index + 1] if ends else points[index]
        index += 2 if ends else 1
