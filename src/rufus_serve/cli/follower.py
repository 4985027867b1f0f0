"""Offer this host to a leader: join its cluster, and hold one shard of its model.

Waits for the leader if it is not up yet. All settings but the flags here come from the leader.
"""

import argparse
import os
from pathlib import Path

from rufus_serve.cli.surroundings import keep_folder_off_import_path
from rufus_serve.errors import ConfigError
from rufus_serve.log import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the leader is, and who we are."""
    parser.add_argument(
        "--leader", metavar="HOST:PORT", required=True, help="address of the leader's Ray head"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="file with the token shared by all hosts"
    )
    parser.add_argument(
        "--address",
        metavar="A",
        default="",
        help="own IP address or interface, if the chosen one is wrong",
    )
    parser.add_argument(
        "--log-level",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        default="INFO",
        help="least severe log line shown [INFO]",
    )


def run(args: argparse.Namespace) -> int:
    """Serve steps until the leader stops us."""
    _check_address(args.leader)
    if args.token_file and not args.token_file.is_file():
        raise ConfigError(f"--token-file {args.token_file} is not a file")
    keep_folder_off_import_path(os.environ)
    configure_logging("follower", level=args.log_level)
    from rufus_serve.cluster.ray_join import offer_host

    return offer_host(leader=args.leader, token_file=args.token_file, address=args.address)


def _check_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--leader {text!r} must be HOST:PORT, such as 10.0.0.7:6379")
    if ":" in host:
        raise ConfigError(
            f"--leader {text!r} is an IPv6 address; hosts of a group reach each other by IPv4, so "
            "name the leader by its IPv4 address or a name that has one"
        )
