"""Arguments that say which running server of this host a command means."""

import argparse


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """--port and --state-dir, as `serve` had them."""
    parser.add_argument(
        "--port", type=int, default=8000, metavar="P", help="port of the server's endpoint [8000]"
    )
    parser.add_argument(
        "--state-dir",
        default="",
        metavar="DIR",
        help="cluster.state_dir of the server [~/.local/state/rufus-serve]",
    )
