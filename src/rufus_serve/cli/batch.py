"""Ask all requests of a file in OpenAI's batch format, and write their answers.

The same command again goes on where a run ended, whatever ended it: no line is asked twice that
was answered. Failures go to a file of their own. Arguments after -- are those of `serve`; then a
server of its own is started for the batch.
"""

import argparse
import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from rufus_serve.cli.endpoint_flags import add_key_argument, add_url_argument
from rufus_serve.client import base_url
from rufus_serve.errors import BatchError, ConfigError, EndpointError

if TYPE_CHECKING:
    from rufus_serve.batch.journal import Journal
    from rufus_serve.batch.own_server import OwnServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, endpoint and pace."""
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, metavar="FILE", help="requests, one a line")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="gets the answers")
    add("--errors", type=Path, metavar="FILE", help="gets the failures [OUTPUT.errors.jsonl]")
    add("--retry-failed", action="store_true", help="ask again what failed in an earlier run")
    add_url_argument(parser)
    add_key_argument(parser)
    add("--concurrency", type=int, default=16, metavar="N", help="requests in flight [16]")
    add("--timeout-s", type=float, default=3600, metavar="S", help="of one request [3600]")
    add("--patience-s", type=float, default=120, metavar="S",
        help="for an endpoint that is gone or full to answer again [120]")  # fmt: skip
    add("serve", nargs="*", metavar="-- SERVE-ARGUMENTS", help="start a server for this batch")


def run(args: argparse.Namespace) -> int:
    """Run it; 0 once every line has an answer."""
    try:
        import aiohttp  # noqa: F401 - named here rather than at the first request
    except ImportError as error:
        raise ConfigError("batch needs aiohttp: pip install 'rufus-serve[bench]'") from error
    from rufus_serve.batch.journal import Journal
    from rufus_serve.batch.own_server import own_server
    from rufus_serve.batch.runner import closing

    if args.concurrency < 1:
        raise ConfigError(f"--concurrency must be at least 1, got {args.concurrency}")
    total = _count(args.input)
    errors = args.errors or args.output.with_name(f"{args.output.stem}.errors.jsonl")
    if len({path.absolute() for path in (args.input, args.output, errors)}) < 3:
        raise ConfigError("input, output and errors must be three files")
    with closing(Journal(args.output, errors, again=args.retry_failed)) as journal:
        if journal.completed + journal.failed < total:
            own = own_server(args.serve) if args.serve else contextlib.nullcontext()
            with own as server:
                _ask_all(args, server, journal, total)
        answered, failed = journal.completed, journal.failed
    print(f"{answered} answered, in {args.output}; {failed} failed, in {errors}")
    if failed:
        raise BatchError(f"{failed} of {total} lines failed; {errors} says why")
    return 0


def _count(path: Path) -> int:
    """Lines that want an answer."""
    from rufus_serve.batch.lines import read

    try:
        total = sum(1 for _ in read(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not total:
        raise ConfigError(f"{path} holds no request; write one JSON object a line")
    return total


def _ask_all(
    args: argparse.Namespace, server: "OwnServer | None", journal: "Journal", total: int
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from rufus_serve.batch.http_sender import http_sender
    from rufus_serve.batch.lines import read
    from rufus_serve.batch.runner import BatchRun, NotNow, Pace

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        done = journal.completed + journal.failed
        task = progress.add_task(args.input.name, total=total, completed=done)
        endpoint = base_url(server.url if server else args.url)

        async def go() -> None:
            async with http_sender(endpoint, args.api_key, timeout_s=args.timeout_s) as send:
                pace = Pace(args.concurrency, args.patience_s)
                asked = server.watched(send) if server else send
                batch = BatchRun(journal, asked, pace, on_line=lambda: progress.advance(task))
                await batch.go(read(args.input))

        try:
            asyncio.run(go())
        except NotNow as refusal:
            raise EndpointError(
                f"no answer for {args.patience_s:g} s: {refusal}; {journal.completed} answers are "
                "kept, and the same command goes on from there"
            ) from refusal
