"""Watch a running server in the terminal: groups, followers, load, and what happened."""

import argparse
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from rufus_serve.cli.endpoint_flags import add_key_argument, add_url_argument
from rufus_serve.client import base_url, bearer
from rufus_serve.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from rufus_serve.leader.api.overview.views import Overview

_ANSWER_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server, as whom, how often."""
    add = parser.add_argument
    add_url_argument(parser)
    add_key_argument(parser, "needs scope metrics")
    add("--interval", type=float, default=1.0, metavar="S", help="seconds between looks [1]")
    add("--once", action="store_true", help="look once, print it, and end")


def run(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from rufus_serve.cli.top_screen import screen, unreachable

    if args.interval <= 0:
        raise ConfigError(f"--interval must be above 0, got {args.interval:g}")
    first = _look(args)
    console = Console()
    if args.once:
        console.print(screen(first))
        return 0
    try:
        with Live(screen(first), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(args.interval)
                try:
                    live.update(screen(_look(args)), refresh=True)
                except EndpointError as error:
                    live.update(unreachable(str(error)), refresh=True)
    except KeyboardInterrupt:
        return 0


def _look(args: argparse.Namespace) -> "Overview":
    """What the server says now.

    Raises:
        EndpointError: it does not answer, or not to this key.
    """
    import msgspec

    from rufus_serve.leader.api.overview.views import Overview

    url = f"{base_url(args.url)}/overview"
    try:
        request = urllib.request.Request(url, headers=bearer(args.api_key))  # noqa: S310 - the user's own
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:  # noqa: S310
            return msgspec.json.decode(answer.read(), type=Overview)
    except urllib.error.HTTPError as error:
        with error:
            raise EndpointError(f"{url} answers HTTP {error.code}: {_words(error)}") from error
    except (OSError, ValueError) as error:
        raise EndpointError(f"{url} does not answer: {error}; is the server running?") from error


def _words(error: urllib.error.HTTPError) -> str:
    import json

    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
