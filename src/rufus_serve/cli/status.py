"""Show the group of a running server: its state, epoch, and each follower."""

import argparse

from rufus_serve.cli.running_server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which server, and in which form."""
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--schema", action="store_true", help="print the schema of that JSON")


def run(args: argparse.Namespace) -> int:
    """Print it; 0 if the server would take a request now, else 1."""
    import msgspec

    from rufus_serve.protocol.messages import Status
    from rufus_serve.supervisor import orders

    if args.schema:
        print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Status))).decode())
        return 0
    status = orders.status(port=args.port, folder=args.state_dir)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(status)).decode())
    else:
        print(f"{status.state}, epoch {status.epoch}, {status.restarts} restarts {status.detail}")
        if status.recovery_s:
            print(f"  the last recovery took {status.recovery_s:.1f} s")
        if status.cluster_detail:
            print(f"  {status.cluster_detail}; followers go on, but none can be started")
        for follower in status.followers:
            print(
                f"  follower {follower.node_rank} on {follower.host}, process {follower.pid}: "
                f"{follower.phase} for {follower.phase_s:.0f} s, "
                f"weights loaded {follower.load_count} times"
                + (f", computing with {follower.kernels}" if follower.kernels else "")
            )
    return 0 if status.ready else 1
