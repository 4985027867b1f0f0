"""Make, list, rotate and revoke the API keys of an endpoint.

A running server follows its file: changes are in force within seconds.
"""

import argparse
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from rufus_serve.config.keys import ApiKey, Scope, fingerprint, new_key, read_keys, write_keys
from rufus_serve.errors import ConfigError

_LIMITS = {
    "requests-per-minute": "requests admitted per minute",
    "tokens-per-minute": "tokens of prompts and answers per minute",
    "max-sequences": "sequences open at a time",
    "max-n": "largest n of a request",
    "priority": "lower is scheduled earlier",
}
_UNTOLD = {"id", "sha256", "previous_sha256"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """add, list, rotate, revoke."""
    actions = "{add,list,rotate,revoke}"
    commands = parser.add_subparsers(dest="action", required=True, metavar=actions)
    add = commands.add_parser("add", help="make a key and print it; only its hash is kept")
    add.add_argument("id", metavar="ID", help="name of the key's owner")
    add.add_argument(
        "--scope", action="append", choices=get_args(Scope), help="may be repeated [infer]"
    )
    add.add_argument("--model", action="append", metavar="NAME", help="may be repeated [all]")
    add.add_argument("--days", type=float, metavar="N", help="expires after so many days [never]")
    for name, about in _LIMITS.items():
        add.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"{about} [0]")
    show = commands.add_parser("list", help="list owners, scopes and limits")
    rotate = commands.add_parser(
        "rotate", help="make its owner another key and print it; the old one goes on for a while"
    )
    rotate.add_argument("id", metavar="ID", help="name of the key's owner")
    rotate.add_argument(
        "--keep-hours", type=float, default=24.0, metavar="N",
        help="for how long both keys are accepted [24]",
    )  # fmt: skip
    revoke = commands.add_parser("revoke", help="remove a key")
    revoke.add_argument("id", metavar="ID", help="name of the key's owner")
    for command in (add, show, rotate, revoke):
        command.add_argument(
            "--file", type=Path, required=True, metavar="FILE", help="the server's api_key_file"
        )


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    {"add": _add, "list": _list, "rotate": _rotate, "revoke": _revoke}[args.action](args)
    return 0


def _add(args: argparse.Namespace) -> None:
    keys = read_keys(args.file, empty_too=True) if args.file.exists() else ()
    if any(key.id == args.id for key in keys):
        raise ConfigError(f"{args.file} holds a key of {args.id} already; rotate or revoke it")
    secret = new_key()
    days = args.days
    limits = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in _LIMITS}
    try:
        key = ApiKey(
            id=args.id,
            sha256=fingerprint(secret),
            scopes=tuple(args.scope or ("infer",)),
            models=tuple(args.model or ()),
            expires=days and datetime.now(timezone.utc) + timedelta(days=days),
            **limits,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
    write_keys(args.file, (*keys, key))
    print(secret)


def _list(args: argparse.Namespace) -> None:
    for key in read_keys(args.file):
        said = key.model_dump(mode="json", exclude_defaults=True, exclude=_UNTOLD)
        said = {"scopes": list(key.scopes)} | said
        details = ", ".join(f"{name} {_text(value)}" for name, value in said.items())
        print(f"{key.id}: {details}{' (expired)' if key.expired else ''}")


def _rotate(args: argparse.Namespace) -> None:
    keys = read_keys(args.file)
    old = _find(args, keys)
    secret = new_key()
    change = {
        "sha256": fingerprint(secret),
        "previous_sha256": old.sha256,
        "previous_expires": datetime.now(timezone.utc) + timedelta(hours=args.keep_hours),
    }
    new = old.model_copy(update=change)
    write_keys(args.file, tuple(new if key is old else key for key in keys))
    print(secret)


def _revoke(args: argparse.Namespace) -> None:
    keys = read_keys(args.file)
    gone = _find(args, keys)
    write_keys(args.file, tuple(key for key in keys if key is not gone))


def _find(args: argparse.Namespace, keys: tuple[ApiKey, ...]) -> ApiKey:
    for key in keys:
        if key.id == args.id:
            return key
    known = ", ".join(key.id for key in keys)
    raise ConfigError(f"{args.file} holds no key of {args.id}; it has {known}")


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
