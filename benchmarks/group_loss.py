"""How long streams pause when a group's follower is killed, with a second group and without.

    python benchmarks/group_loss.py [--rounds 5] [--write]

Eight streams run; a second after the last of them began, the follower of one group gets SIGKILL.
A round's pause is the longest of any of its streams. All texts must be those of an undisturbed
run in float32; in bfloat16 they must be whole. With two groups there is a case more: whatever takes
the lost follower's place does not start to load for a minute, as a device that loads for long
would, or until the round's streams have ended.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from marks import keep
from peer_loss import PROMPTS, Stream, all_streams
from rufus_serve.protocol.messages import Status
from rufus_serve.supervisor import orders
from serving_report import table
from serving_servers import PORT, ROOT, Contender, Running, machine, ours, versions

RECORD = ROOT / "benchmarks" / "results" / "group_loss.json"
MARKS = ("<!-- group loss: begin -->", "<!-- group loss: end -->")
SLOW_S = 60
_READY_S = 120.0


@dataclass(frozen=True)
class Case:
    """A server and how slow a new follower is."""

    name: str
    groups: int
    slow: bool = False
    dtype: str = "float32"


CASES = (
    Case("one group", 1),
    Case("two groups", 2),
    Case("two groups, bfloat16", 2, dtype="bfloat16"),
    Case(f"two groups, {SLOW_S} s to load", 2, slow=True),
)


def contender(case: Case, python: Path) -> Contender:
    """Ours with one follower a group."""
    more = [f"--dtype={case.dtype}", f"--groups={case.groups}", "--cluster.kind=local",
            f"--cluster.python={python}", "--recovery.max-restarts=1000"]  # fmt: skip
    return replace(ours(*more), name=case.name)


def slow_python(folder: Path, flag: Path) -> Path:
    """An interpreter that takes its time, but no longer than there is a file `flag`."""
    path = folder / "python"
    wait = f"for _ in $(seq {SLOW_S}); do [ -e {flag} ] || break; sleep 1; done"
    path.write_text(f'#!/bin/sh\n{wait}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def status() -> Status:
    return orders.status(port=PORT, folder="")


def wait_all_ready() -> None:
    deadline = time.monotonic() + _READY_S
    while not all(group.ready for group in status().groups):
        assert time.monotonic() < deadline, status()
        time.sleep(0.1)


async def round_of(
    client: httpx.AsyncClient, expected: list[Stream], victim: int, *, exact: bool
) -> dict:
    """Streams with a blow in between: the longest pause, and what came of them."""
    found = [Stream() for _ in PROMPTS]
    streaming = asyncio.create_task(all_streams(client, found))
    while not all(stream.text or streaming.done() for stream in found):
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)
    assert not streaming.done(), "the streams ended before the blow"
    os.kill(victim, 9)
    await streaming
    ready = [group.ready for group in status().groups]
    whole = [
        a.end == "done" and (a.text == b.text or not exact)
        for a, b in zip(found, expected, strict=True)
    ]
    return {
        "pause_s": round(max(stream.longest_pause_s for stream in found), 3),
        "whole_texts": sum(whole),
        "ready_at_the_end": ready,
    }


async def rounds(case: Case, flag: Path, count: int) -> list[dict]:
    base = f"http://127.0.0.1:{PORT}"
    async with httpx.AsyncClient(base_url=base, timeout=300.0) as client:
        expected = [Stream() for _ in PROMPTS]
        await all_streams(client, expected)
        found, exact = [], case.dtype == "float32"
        for number in range(count):
            await asyncio.to_thread(wait_all_ready)
            group = number % case.groups
            victim = next(f.pid for f in status().followers if f.group == group)
            if case.slow:
                flag.touch()
            found.append(await round_of(client, expected, victim, exact=exact))
            flag.unlink(missing_ok=True)
            print(time.strftime("%X"), case.name, json.dumps(found[-1]), flush=True)
    return found


@contextmanager
def started(case: Case) -> Iterator[Path]:
    """The server of a case; the file that makes new followers slow."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gl-")))
        flag = folder / "slow"
        server = Running(contender(case, slow_python(folder, flag)), folder)
        stack.callback(server.stop)
        yield flag


def report(record: dict) -> str:
    """The table."""
    header = ["a follower gets kill -9", "pause p50 s", "longest s", "whole texts"]
    lines = []
    for name, found in record["cases"].items():
        pauses = [each["pause_s"] for each in found]
        whole = sum(each["whole_texts"] for each in found)
        lines.append(
            [name, f"{statistics.median(pauses):.2f}", f"{max(pauses):.2f}",
             f"{whole} of {len(PROMPTS) * len(found)}"]
        )  # fmt: skip
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="blows to each server [5]")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    cases = {}
    for case in (each for each in CASES if options.only in each.name):
        with started(case) as flag:
            cases[case.name] = asyncio.run(rounds(case, flag, options.rounds))
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/group_loss.py",
        "machine": machine(),
        "versions": versions(),
        "cases": cases,
        "load_1min_at_the_end": round(os.getloadavg()[0], 1),
    }
    print(report(record))
    if options.write:
        keep(record, RECORD, f"{record['date']}\n\n{report(record)}", MARKS)


if __name__ == "__main__":
    main()
