"""Flags for every setting, generated from the configuration model."""

import argparse
import os
from pathlib import Path
from typing import Any

from rufus_serve.config.settings import Setting, all_settings, sections
from rufus_serve.config.sources import Resolved, resolve

_PREFIX = "setting:"
"""Marks the parsed attributes that are settings; the dotted key follows."""

_SHORT_FLAGS = {"artifacts.required": "--require-artifacts"}


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, --config and one flag per setting, grouped by section."""
    parser.usage = f"{parser.prog} [MODEL] [--config FILE] [SETTING …]"
    group = parser.add_argument_group("settings")
    for setting in all_settings().values():
        if not setting.section:
            _add(group, setting)
        if setting.key == "model":
            _add_config(group)
    for name, about in sections().items():
        group = parser.add_argument_group(name, about.replace("`", ""))
        for setting in all_settings().values():
            if setting.section == name:
                _add(group, setting)


def resolve_arguments(args: argparse.Namespace) -> Resolved:
    """The configuration described by parsed arguments, our variables, and the settings file."""
    given = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }
    file = args.config or os.environ.get("RUFUS_CONFIG")
    return resolve(file=Path(file) if file else None, environ=os.environ, flags=given)


def _add_config(group: Any) -> None:
    group.add_argument(
        "--config", metavar="FILE", help="YAML file of settings (also: variable RUFUS_CONFIG)"
    )


def _add(group: Any, setting: Setting) -> None:
    options: dict[str, Any] = {"help": _help(setting), "default": None}
    if setting.key == "model":
        group.add_argument(_PREFIX + "model", metavar="MODEL", nargs="?", **options)
        return
    if setting.is_bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["metavar"] = _metavar(setting)
    short = [_SHORT_FLAGS[setting.key]] if setting.key in _SHORT_FLAGS else []
    group.add_argument(*short, setting.flag, dest=_PREFIX + setting.key, **options)


def _metavar(setting: Setting) -> str:
    if setting.choices:
        return "{" + ",".join(setting.choices) + "}"
    if setting.is_list:
        return "N,N,…"
    if setting.is_mapping:
        return "'{NAME: VALUE}'"
    return setting.type_name.split()[0].upper()


def _help(setting: Setting) -> str:
    default = setting.default
    if setting.is_list:
        default = ",".join(str(part) for part in default)
    elif setting.is_bool:
        default = str(default).lower()
    text = setting.help.replace("%", "%%")
    return text if default in (None, "", {}) else f"{text} [{default}]"
