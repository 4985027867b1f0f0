"""Make artifacts ahead of time: each follower's shard, and on Trainium the compiled graphs.

Takes the settings that `serve` takes. An interrupted run is gone on with by running it again;
artifacts that are complete are checked and kept. Then serve with --artifacts.location OUT.
"""

import argparse

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.log import configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and every setting."""
    parser.add_argument(
        "--out", metavar="DIR|URL", required=True, help="where artifacts go: a folder, s3://…, …"
    )
    parser.add_argument(
        "--force", action="store_true", help="try even if memory or disk seem too small"
    )
    add_setting_arguments(parser)
    parser.usage = f"{parser.prog} [MODEL] [--config FILE] --out DIR|URL [SETTING …]"


def run(args: argparse.Namespace) -> int:
    """Make them; print where they are."""
    config = resolve_arguments(args).config
    configure_logging("compile", level=config.log_level)
    from rufus_serve.cli.stage_progress import stage_progress
    from rufus_serve.compiler.compile import compile_artifacts

    with stage_progress() as progress:
        where = compile_artifacts(config, args.out, force=args.force, progress=progress)
    print(where)
    return 0
