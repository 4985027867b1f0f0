"""Let a running server finish: no new requests (503), running ones within the grace, then exit 0.

Run it on the leader's host. Followers end as well, unless they are kept for the next leader.
With --group, that group alone: its requests go on in other groups, and the server stays. It waits
idle until `rufus-serve restart-group` takes it back.
"""

import argparse

from rufus_serve.cli.running_server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server, and how long it may take."""
    add_server_arguments(parser)
    parser.add_argument("--group", type=int, metavar="G", help="drain this group alone")
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds for running requests [30]"
    )
    parser.add_argument(
        "--keep-followers",
        action="store_true",
        help="followers keep their weights and wait (needs recovery.on_leader_loss: wait)",
    )


def run(args: argparse.Namespace) -> int:
    """Drain; returns once the server has ended, or the group has no request left."""
    from rufus_serve.supervisor import orders

    if args.group is not None:
        orders.drain_group(
            port=args.port, folder=args.state_dir, group=args.group, grace_s=args.grace
        )
        print(f"group {args.group} has no request left")
        return 0
    orders.drain(
        port=args.port,
        folder=args.state_dir,
        grace_s=args.grace,
        keep_followers=args.keep_followers,
    )
    print("the server has ended")
    return 0
