"""Record where the time of the next steps goes, for https://ui.perfetto.dev.

Run it on the leader's host while the server has work; idle servers take no steps.
"""

import argparse
from pathlib import Path

from rufus_serve.cli.running_server import add_server_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many steps of which server, and where to write them."""
    add_server_arguments(parser)
    parser.add_argument(
        "--group", type=int, default=0, metavar="G", help="whose engine is traced [0]"
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps to record [100]")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("trace.json"), help="file to write [trace.json]"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for them [60]"
    )


def run(args: argparse.Namespace) -> int:
    """Trace; returns once the file is written."""
    from rufus_serve.supervisor import orders

    orders.trace(
        port=args.port,
        folder=args.state_dir,
        group=args.group,
        num_steps=args.steps,
        path=args.output.absolute(),
        deadline_s=args.timeout,
    )
    print(f"{args.steps} steps written to {args.output}; open it in https://ui.perfetto.dev")
    return 0
