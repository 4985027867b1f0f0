"""A progress bar per stage on standard error; plain lines where that is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rufus_serve.compiler.compile import StageProgress


@contextmanager
def stage_progress() -> Iterator[StageProgress]:
    """Call what this gives with (stage, done, total, detail); any thread."""
    if not sys.stderr.isatty():
        yield _print_ends
        return
    bars: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as display:

        def update(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total, detail=detail)
            display.update(bars[stage], completed=done, total=total, detail=detail)

        yield update


def _print_ends(stage: str, done: int, total: int, detail: str) -> None:
    """One line when a stage is done."""
    if done >= total:
        print(f"{stage}: {detail}", file=sys.stderr)
