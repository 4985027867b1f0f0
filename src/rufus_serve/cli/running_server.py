"""Arguments that say which running server of this host a command means."""

import argparse


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """--port and --state-dir, as `serve` had them."""
    parser.add_argument(
        "--port", type=int, metavar="P", help="port of its endpoint [the only server running here]"
    )
    parser.add_argument(
        "--state-dir",
        default="",
        metavar="DIR",
        help="cluster.state_dir of the server [~/.local/state/rufus-serve]",
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """--timeout, of what is restarted."""
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="seconds to wait [1800]"
    )
