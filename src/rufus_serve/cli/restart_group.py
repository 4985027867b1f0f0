"""Replace a group's followers; its requests go on in other groups, or pause. None is lost.

`all` restarts one group after the other, each once the one before serves again. A group that was
drained takes requests again afterwards.
"""

import argparse
import time

from rufus_serve.cli.running_server import add_server_arguments, add_timeout

ALL = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which group of which server."""
    parser.add_argument(
        "group", type=_group, metavar="GROUP", help="number of the group, from 0, or `all`"
    )
    add_server_arguments(parser)
    add_timeout(parser)


def run(args: argparse.Namespace) -> int:
    """Restart it; returns once it serves again."""
    from rufus_serve.supervisor import orders

    where = {"port": args.port, "folder": args.state_dir}
    numbers = [args.group]
    if args.group == ALL:
        numbers = [each.group for each in orders.status(**where).groups]
    for number in numbers:
        began = time.monotonic()
        orders.restart_group(**where, group=number, deadline_s=args.timeout)
        print(f"group {number} is back after {time.monotonic() - began:.1f} s")
    return 0


def _group(text: str) -> int:
    return ALL if text == "all" else int(text)
