"""Replace one follower of a running server; requests pause and go on, none is lost."""

import argparse
import time

from rufus_serve.cli.running_server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which follower of which server."""
    parser.add_argument("rank", type=int, help="node rank of the follower, from 0")
    add_server_arguments(parser)
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="seconds to wait [1800]"
    )


def run(args: argparse.Namespace) -> int:
    """Restart it; returns once the group serves again."""
    from rufus_serve.supervisor import orders

    began = time.monotonic()
    orders.restart_follower(
        port=args.port, folder=args.state_dir, node_rank=args.rank, deadline_s=args.timeout
    )
    print(f"follower {args.rank} is back after {time.monotonic() - began:.1f} s")
    return 0
