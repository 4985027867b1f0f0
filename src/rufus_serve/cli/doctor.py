"""Examine this host, or all nodes of the group, before anything is started.

Takes the settings that `serve` takes, and checks what serving by them needs: devices, driver and
libraries, EFA, limits, memory, disk, ports, versions, the model and its artifacts. With
--all-nodes it joins the Ray cluster of a running server, or starts one and waits for
`rufus-serve follower` on the other hosts, examines each, and has every pair connect both ways.

Every finding says what is so, why it matters, and what fixes it. Ends with 0 if there is no
error, else with the code that `serve` would end with; with --strict, 14 if there are warnings.
"""

import argparse
import contextlib
import sys

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.log import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which hosts, in which form, and every setting."""
    parser.add_argument(
        "--all-nodes", action="store_true", help="examine every node of the group, and every pair"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--strict", action="store_true", help="end with 14 if there are warnings, but no error"
    )
    parser.add_argument(
        "--quick", action="store_true", help="compare sizes of artifact files, not checksums"
    )
    add_setting_arguments(parser)
    parser.usage = f"{parser.prog} [MODEL] [--config FILE] [--all-nodes] [SETTING …]"


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit code they make."""
    config = resolve_arguments(args).config
    configure_logging("doctor", level=config.log_level)
    from rufus_serve.cli.doctor_table import print_report, report_as_json
    from rufus_serve.doctor.all_nodes import examine_nodes
    from rufus_serve.doctor.one_host import examine_host

    examine = examine_nodes if args.all_nodes else examine_host
    # Ray's start-up may print; standard output is for the report alone.
    with contextlib.redirect_stdout(sys.stderr):
        report = examine(config, quick=args.quick)
    if args.json:
        print(report_as_json(report, strict=args.strict))
    else:
        print_report(report)
    return report.exit_code(strict=args.strict)
