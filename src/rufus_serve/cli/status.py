"""Show the groups of a running server: their states, epochs, and each follower."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rufus_serve.cli.running_server import add_server_arguments

if TYPE_CHECKING:
    from rufus_serve.protocol.messages import FollowerStatus, Status


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
        print("\n".join(_lines(status)))
    return 0 if status.ready else 1


def _lines(status: "Status") -> Iterator[str]:
    several = len(status.groups) > 1
    if several:
        yield f"{status.state}, {sum(each.ready for each in status.groups)} of " + (
            f"{len(status.groups)} groups take requests"
        )
    if status.cluster_detail:
        yield f"  {status.cluster_detail}; followers go on, but none can be started"
    for group in status.groups:
        name = f"group {group.group}: " if several else ""
        state = group.state if several else status.state
        yield f"{name}{state}, epoch {group.epoch}, {group.restarts} restarts {group.detail}"
        if group.recovery_s:
            yield f"  the last recovery took {group.recovery_s:.1f} s"
        for follower in status.followers:
            if follower.group == group.group:
                yield f"  {_line(follower)}"


def _line(follower: "FollowerStatus") -> str:
    kernels = f", computing with {follower.kernels}" if follower.kernels else ""
    return (
        f"follower {follower.node_rank} on {follower.host}, process {follower.pid}: "
        f"{follower.phase} for {follower.phase_s:.0f} s, "
        f"weights loaded {follower.load_count} times{kernels}"
    )
