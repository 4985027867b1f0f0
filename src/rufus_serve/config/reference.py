"""Renders the settings for readers: a table of resolved values, and the Markdown reference."""

import re
from collections.abc import Iterable
from typing import Any

from rufus_serve.config.environment import NON_SETTINGS
from rufus_serve.config.settings import Setting, all_settings, sections
from rufus_serve.config.sources import Resolved

_INTRODUCTION = """# Configuration

Made by `rufus-serve config reference`; do not edit.

Settings come from a YAML file (`--config FILE`), then `RUFUS_*` variables, then flags of
`rufus-serve serve`; later ones win. A setting `section.name` is

- in YAML: `name:` below `section:`;
- as a variable: `RUFUS_SECTION__NAME`, in capitals with two underscores for the dot;
- as a flag: `--section.name`, with `-` for `_`; true and false are `--x` and `--no-x`.

Lists are `1,2,4` in variables and flags. Mappings are written as YAML, `{name: value}`; sources
are merged key by key, and a variable may set one entry (`RUFUS_VLLM_ARGS__SEED=1`). Paths are
relative to the working directory. Unknown settings and unknown `RUFUS_*` variables are errors.
`rufus-serve config show` prints what results, and where each value came from.
"""

_SECRET = re.compile(r"token$|secret|password|credential|api_?key", re.IGNORECASE)
"""Names of options of vLLM, as `hf_token`, whose values are nobody's to read."""
_HIDDEN = "(hidden)"


def resolved_rows(resolved: Resolved) -> list[dict[str, Any]]:
    """Key, value in plain data and origin of every setting; of mappings, secrets are hidden."""
    tree = resolved.config.model_dump(mode="json")
    return [
        {"key": key, "value": _shown(_at(tree, key)), "origin": str(resolved.origins[key])}
        for key in all_settings()
    ]


def _shown(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: _HIDDEN if isinstance(each, str) and _SECRET.search(name) else _shown(each)
        for name, each in value.items()
    }


def markdown() -> str:
    """The reference of all settings and variables."""
    settings = all_settings().values()
    parts = [_INTRODUCTION, _table("General", "", (each for each in settings if not each.section))]
    for name, about in sections().items():
        parts.append(
            _table(f"`{name}`", about, (each for each in settings if each.section == name))
        )
    parts.append(_variables())
    return "\n".join(parts)


def _at(tree: dict[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (tree[section] if section else tree)[name]


def _table(title: str, about: str, settings: Iterable[Setting]) -> str:
    lines = [f"## {title}", ""]
    lines += [about, ""] if about else []
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{each.key}` | {_cell(each.type_name)} | {_default(each)} | {_cell(each.markdown)} |"
        for each in settings
    ]
    return "\n".join(lines) + "\n"


def _default(setting: Setting) -> str:
    if setting.required:
        return "required"
    default = setting.default
    if default in (None, "", [], {}):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _variables() -> str:
    lines = ["## Variables that are not settings", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, about in NON_SETTINGS.items()]
    return "\n".join(lines) + "\n"
