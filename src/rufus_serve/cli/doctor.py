"""Examine this host, or all nodes of the group, before anything is started.

Takes the settings that `serve` takes, and checks what serving by them needs: devices, driver and
libraries, EFA, limits, memory, disk, ports, versions, the model and its artifacts. With
--all-nodes it joins the Ray cluster of a running server, or starts one and waits for
`rufus-serve follower` on the other hosts, examines each, and has every pair connect both ways.

With --bring-up it goes on, whatever it found: it compiles and serves the model by one process, by
several on this host, and as configured, compares the answers with transformers' and times them.

Every finding says what is so, why it matters, and what fixes it. Ends with 0 if there is no
error, else with the code that `serve` would end with; with --strict, 14 if there are warnings.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.log import configure_logging

if TYPE_CHECKING:
    from rufus_serve.config.schema import ServeConfig
    from rufus_serve.doctor.report import DoctorReport

_BRING_UP_TOKENS = 16


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
    parser.add_argument(
        "--bring-up", type=Path, metavar="FILE",
        help="also serve the model, smallest first, and write all that came of it as JSON",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="FILE",
        help="reference of --bring-up [made with transformers; see `verify`]",
    )  # fmt: skip
    add_setting_arguments(parser)
    parser.usage = (
        f"{parser.prog} [MODEL] [--config FILE] [--all-nodes] [--bring-up FILE] [SETTING …]"
    )


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
    if args.bring_up:
        return _bring_up(args, config, report)
    if args.json:
        print(report_as_json(report, strict=args.strict))
    else:
        print_report(report)
    return report.exit_code(strict=args.strict)


def _bring_up(args: argparse.Namespace, config: "ServeConfig", hosts: "DoctorReport") -> int:
    """Try the stages; write the report; the exit code of the first that failed."""
    import msgspec

    from rufus_serve.artifacts.manifest import write_atomically
    from rufus_serve.doctor.bring_up import bring_up
    from rufus_serve.doctor.stages import bring_up_stages
    from rufus_serve.model.shape import read_model_shape
    from rufus_serve.verify.comparison import Limits
    from rufus_serve.verify.making import make_reference
    from rufus_serve.verify.reference import read_reference

    folder = Path(config.model)
    reference = (
        read_reference(args.against)
        if args.against
        else make_reference(folder, num_tokens=_BRING_UP_TOKENS, progress=lambda *_: None)
    )
    report = bring_up(
        bring_up_stages(config, read_model_shape(folder)),
        reference,
        hosts=hosts,
        limits=Limits(),
        tell=print,
    )
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    write_atomically(args.bring_up, text + b"\n")
    print(f"wrote {args.bring_up}")
    return report.exit_code
