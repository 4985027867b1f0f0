"""Resolves `ServeConfig` from its sources and remembers where each value came from.

Later sources win: defaults, the YAML file, `RUFUS_*` variables, flags. Mappings with free keys
(`vllm_args`, `neuron.neuron_config`) are merged key by key; everything else is replaced whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from rufus_serve.config import environment, yaml_file
from rufus_serve.config.checks import conflicts
from rufus_serve.config.schema import ServeConfig
from rufus_serve.config.settings import Setting, all_settings, nearest_key, sections
from rufus_serve.errors import ConfigError

Kind = Literal["default", "file", "environment", "flag"]


@dataclass(frozen=True)
class Origin:
    """Where a value came from."""

    kind: Kind
    place: str = ""
    """FILE:LINE, the variable's name, or the flag; several are joined by ` + `."""

    def __str__(self) -> str:
        return self.place or self.kind


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and the origin of each of its values, by dotted key."""

    config: ServeConfig
    origins: Mapping[str, Origin]


@dataclass(frozen=True)
class _Given:
    """One value as a source gave it."""

    key: str
    value: Any
    origin: Origin
    is_text: bool = False
    """The value is a string out of a variable or flag and still to be read."""


def resolve(*, file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Resolved:
    """The configuration that `file` < `environ` < `flags` describe.

    `flags` holds dotted keys; texts are read as the variables' are.

    Raises:
        ConfigError: a key is unknown, a value wrong, or settings contradict each other. The
            message has one line per problem, each with its place.
    """
    given = [*_from_file(file), *_from_environment(environ), *_from_flags(flags)]
    problems = [problem for each in given if (problem := _unknown(each))]
    if problems:
        raise _error(problems)
    values, origins, problems = _layer(given)
    if problems:
        raise _error(problems)
    if "model" not in values:
        raise ConfigError(
            "no model: give its folder as MODEL, as 'model:' in the file, or as RUFUS_MODEL"
        )
    config = _validate(values, origins)
    complete = {key: origins.get(key, Origin("default")) for key in all_settings()}
    problems = [
        conflict.message + _places(complete, conflict.keys) for conflict in conflicts(config)
    ]
    if problems:
        raise _error(problems)
    return Resolved(config, complete)


def _from_file(file: Path | None) -> list[_Given]:
    if file is None:
        return []
    free = frozenset(key for key, setting in all_settings().items() if setting.is_mapping)
    placed = yaml_file.read(file, free=free)
    return [_Given(key, each.value, Origin("file", each.place)) for key, each in placed.items()]


def _from_environment(environ: Mapping[str, str]) -> list[_Given]:
    return [
        _Given(key, text, Origin("environment", name), is_text=True)
        for key, (name, text) in sorted(environment.read(environ).items())
    ]


def _from_flags(flags: Mapping[str, Any]) -> list[_Given]:
    settings = all_settings()
    return [
        _Given(
            key,
            value,
            Origin("flag", settings[key].flag if key in settings else f"flag {key}"),
            is_text=isinstance(value, str),
        )
        for key, value in flags.items()
    ]


def _unknown(given: _Given) -> str:
    if given.key in all_settings() or _free_parent(given.key):
        return ""
    if given.key in sections():
        if given.value is None:
            return ""
        return f"{given.key}: holds several settings, so it must be a mapping ({given.origin})"
    near = nearest_key(given.key)
    if not near:
        hint = "'rufus-serve config reference' lists all"
    elif given.origin.kind == "environment":
        hint = f"did you mean {all_settings()[near].variable}?"
    else:
        hint = f"did you mean {near}?"
    return f"{given.key}: unknown setting ({given.origin}); {hint}"


def _free_parent(key: str) -> Setting | None:
    """The free mapping that `key` is an entry of: `vllm_args` for `vllm_args.seed`."""
    for parent, setting in all_settings().items():
        if setting.is_mapping and key.startswith(parent + "."):
            return setting
    return None


def _layer(given: Iterable[_Given]) -> tuple[dict[str, Any], dict[str, Origin], list[str]]:
    """Values and origins by dotted key once all sources are laid over each other."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    problems: list[str] = []
    for each in given:
        if each.key in sections():
            continue
        try:
            key, value = _read(each)
        except ValueError as error:
            problems.append(f"{each.key}: {error} ({each.origin})")
            continue
        if all_settings()[key].is_mapping and key in values:
            value = {**values[key], **value}
            place = f"{origins[key]} + {each.origin}"
            origins[key] = Origin(each.origin.kind, place)
        else:
            origins[key] = each.origin
        values[key] = value
    return values, origins, problems


def _read(given: _Given) -> tuple[str, Any]:
    """The setting's key and the value in plain data; raises ValueError if it cannot be one."""
    parent = _free_parent(given.key)
    if parent:
        entry = given.key.removeprefix(parent.key + ".")
        return parent.key, {entry: yaml_file.parse_value(given.value)}
    setting, value = all_settings()[given.key], given.value
    if given.is_text:
        value = _read_text(setting, value)
    if setting.is_mapping:
        value = {} if value is None else value
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"must be a mapping such as {{name: value}}, got {value!r}")
    elif isinstance(value, bool) and not setting.is_bool:
        # Python counts True as the number 1.
        raise ValueError(f"must be {setting.type_name}, got {str(value).lower()}")
    return given.key, value


def _read_text(setting: Setting, text: str) -> Any:
    if setting.is_mapping:
        return yaml_file.parse_value(text)
    if setting.is_list:
        inner = text.strip().removeprefix("[").removesuffix("]").strip()
        return [part.strip() for part in inner.split(",")] if inner else []
    if setting.default is None and not text and not setting.required:
        return None
    return text


def _validate(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> ServeConfig:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    try:
        return ServeConfig.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(each, origins) for each in error.errors(include_url=False)]
        raise _error(list(dict.fromkeys(problems))) from None


def _describe(problem: Any, origins: Mapping[str, Origin]) -> str:
    location = [str(part) for part in problem["loc"]]
    keys = [".".join(location[:depth]) for depth in range(len(location), 0, -1)]
    key = next((key for key in keys if key in all_settings()), keys[-1] if keys else "")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = f", got {problem['input']!r}" if key in all_settings() else ""
    related = [name for name in origins if name == key or name.startswith(f"{key}.")]
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}" + _places(origins, related)


def _places(origins: Mapping[str, Origin], keys: Iterable[str]) -> str:
    places = dict.fromkeys(
        str(origins[key]) for key in keys if key in origins and origins[key].kind != "default"
    )
    return f" ({', '.join(places)})" if places else ""


def _error(problems: list[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0])
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} settings are wrong:{lines}")
