"""Add groups to a running server, or take the last ones away. No request is lost.

It returns once the groups that came are ready, or those that went have finished: their requests
go on in other groups that have room, and else end where they are. A group that was not ready
yet goes at once. The next start has as many groups as its settings say.
"""

import argparse

from rufus_serve.cli.running_server import add_server_arguments, add_timeout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many, and of which server."""
    parser.add_argument("--groups", type=int, required=True, metavar="R", help="groups to have")
    add_server_arguments(parser)
    add_timeout(parser)


def run(args: argparse.Namespace) -> int:
    """Scale; returns once that is done."""
    from rufus_serve.supervisor import orders

    orders.scale(port=args.port, folder=args.state_dir, groups=args.groups, deadline_s=args.timeout)
    print(f"groups now: {args.groups}; `groups: {args.groups}` keeps it so after a new start")
    return 0
