"""Serve a model: start followers and the endpoint, and keep them running.

Settings come from --config FILE, then RUFUS_* variables, then flags; later ones win.
Numbers in a list are separated by commas. Values in [] are defaults.
"""

import argparse

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.log import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting."""
    add_setting_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    config = resolve_arguments(args).config
    configure_logging("supervisor", level=config.log_level)
    from rufus_serve.supervisor import serve

    return serve(config)
