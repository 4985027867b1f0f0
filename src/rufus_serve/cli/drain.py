"""Let a running server finish: no new requests (503), running ones within the grace, then exit 0.

Run it on the leader's host. Followers end as well, unless they are kept for the next leader.
"""

import argparse

from rufus_serve.cli.running_server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server, and how long it may take."""
    add_server_arguments(parser)
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds for running requests [30]"
    )
    parser.add_argument(
        "--keep-followers",
        action="store_true",
        help="followers keep their weights and wait (needs recovery.on_leader_loss: wait)",
    )


def run(args: argparse.Namespace) -> int:
    """Drain; returns once the server has ended."""
    from rufus_serve.supervisor import orders

    orders.drain(
        port=args.port,
        folder=args.state_dir,
        grace_s=args.grace,
        keep_followers=args.keep_followers,
    )
    print("the server has ended")
    return 0
