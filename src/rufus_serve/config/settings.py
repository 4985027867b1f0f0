"""The settings as a flat list, read off `ServeConfig`: keys, flags, variables, help, defaults."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rufus_serve.config.schema import ServeConfig
from rufus_serve.config.section import Section

VARIABLE_PREFIX = "RUFUS_"


@dataclass(frozen=True)
class Setting:
    """One leaf of `ServeConfig`."""

    key: str
    """Dotted path, such as `cluster.kind`."""
    field: FieldInfo

    @property
    def section(self) -> str:
        """Name of the section that holds it; empty at the top level."""
        return self.key.rpartition(".")[0]

    @property
    def flag(self) -> str:
        """Command-line flag, such as `--cluster.ray-port`; the model is an argument instead."""
        return "MODEL" if self.key == "model" else "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """Environment variable, such as `RUFUS_CLUSTER__RAY_PORT`."""
        return VARIABLE_PREFIX + self.key.replace(".", "__").upper()

    @property
    def markdown(self) -> str:
        """What it does, in one or two sentences."""
        return " ".join((self.field.description or "").split())

    @property
    def help(self) -> str:
        """`markdown` as plain text."""
        return self.markdown.replace("`", "")

    @property
    def required(self) -> bool:
        """It has no default."""
        return self.field.is_required()

    @property
    def default(self) -> Any:
        """The default in plain data, as YAML would hold it; None if there is none."""
        if self.required:
            return None
        return _plain(self.field.get_default(call_default_factory=True))

    @property
    def is_bool(self) -> bool:
        """True or false; a flag with a `--no-` form."""
        return self.field.annotation is bool

    @property
    def is_list(self) -> bool:
        """Several values; `1,2,4` in a flag or variable."""
        return get_origin(self.field.annotation) is tuple

    @property
    def is_mapping(self) -> bool:
        """Free keys, such as `vllm_args`; sources are merged key by key."""
        return get_origin(self.field.annotation) is dict

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, where they can be listed."""
        annotation = self.field.annotation
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    @property
    def type_name(self) -> str:
        """Its type in the words of the reference, bounds included."""
        if self.choices:
            return " | ".join(self.choices)
        if self.is_list:
            return "texts" if get_args(self.field.annotation)[0] is str else "ascending ints"
        if self.is_mapping:
            return "mapping"
        return _scalar_name(self.field.annotation) + _bounds(self.field)


def _scalar_name(annotation: Any) -> str:
    if isinstance(annotation, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return "path" if annotation is Path else str(annotation.__name__)


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return f" {', '.join(found)}" if found else ""


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


@cache
def all_settings() -> dict[str, Setting]:
    """Every setting by key, in the order of the model."""
    return {setting.key: setting for setting in _walk(ServeConfig, "")}


@cache
def sections() -> dict[str, str]:
    """Every section's name and what it is about; the top level is not among them."""
    return {
        name: " ".join((field.description or "").split())
        for name, field in ServeConfig.model_fields.items()
        if _is_section(field)
    }


def _walk(model: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if _is_section(field):
            yield from _walk(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield Setting(key=prefix + name, field=field)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def nearest_key(key: str) -> str:
    """The setting that a misspelt or misplaced `key` most likely means; empty if none is near."""
    return nearest(key, all_settings())


def nearest(word: str, known: Iterable[str]) -> str:
    """The known dotted name most like `word`, by its whole or by its last part; empty if none."""
    leaf = word.rpartition(".")[2]

    def likeness(candidate: str) -> float:
        last = difflib.SequenceMatcher(None, leaf, candidate.rpartition(".")[2]).ratio()
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        return max(whole, 0.95 * last)

    best = max(known, key=likeness, default="")
    return best if best and likeness(best) >= 0.6 else ""
