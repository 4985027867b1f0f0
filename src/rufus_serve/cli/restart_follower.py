"""Replace one follower of a running server; requests go on in another group, or pause.

None is lost.
"""

import argparse
import time

from rufus_serve.cli.running_server import add_server_arguments, add_timeout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which follower of which server."""
    parser.add_argument(
        "follower",
        type=_follower,
        metavar="[GROUP/]RANK",
        help="node rank of the follower, from 0; with several groups, that of its group first",
    )
    add_server_arguments(parser)
    add_timeout(parser)


def run(args: argparse.Namespace) -> int:
    """Restart it; returns once its group serves again."""
    from rufus_serve.supervisor import orders

    began = time.monotonic()
    group, rank = args.follower
    orders.restart_follower(
        port=args.port,
        folder=args.state_dir,
        group=group,
        node_rank=rank,
        deadline_s=args.timeout,
    )
    print(f"follower {rank} of group {group} is back after {time.monotonic() - began:.1f} s")
    return 0


def _follower(text: str) -> tuple[int, int]:
    group, slash, rank = text.rpartition("/")
    return int(group) if slash else 0, int(rank)
