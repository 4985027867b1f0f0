"""Show, check or document the settings."""

import argparse
import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.config import ServeConfig
from rufus_serve.config.reference import markdown, resolved_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and for `show` every setting."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="print every value that 'serve' would use, and why")
    show.add_argument("--json", action="store_true", help="as JSON instead of a table")
    add_setting_arguments(show)
    actions.add_parser("export", help="print the JSON schema of a settings file")
    actions.add_parser("reference", help="print the reference of all settings in Markdown")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    if args.action == "show":
        _show(resolved_rows(resolve_arguments(args)), as_json=args.json)
    elif args.action == "export":
        print(json.dumps(ServeConfig.model_json_schema(), indent=2))
    else:
        print(markdown(), end="")
    return 0


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({row["key"]: row for row in rows}, indent=2))
        return
    table = Table("setting", "value", "origin", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        style = "dim" if row["origin"] == "default" else ""
        table.add_row(row["key"], _text(row["value"]), row["origin"], style=style)
    Console(markup=False, highlight=False).print(table)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
