"""Where the time goes when a follower is killed: a table over many kills, one at a time.

    python -m benchmarks.recovery [--kills 20] [--write]

Two followers, all deadlines at their defaults, eight greedy streams while each blow falls (SIGKILL,
on either rank in turn). Parts are read from the supervisor's log; the pause is the longest that any
client saw between two tokens. Ends with 1 if a stream did not bring all of its tokens.
"""

import argparse
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.marks import keep
from tests.e2e.losses import Strike, serving, strike, wait_ready
from tests.e2e.server import Server
from tests.e2e.streams import Answer, Streams, completion

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "recovery.json"
MARKS = ("<!-- recovery: begin -->", "<!-- recovery: end -->")
NUM_STREAMS, NUM_TOKENS = 8, 256
_QUIET_S = 1.0


@dataclass(frozen=True)
class Loss:
    """One kill; seconds, the parts one after the other."""

    notice: float
    start: float
    load: float
    group: float
    first_token: float
    pause: float

    @property
    def serving(self) -> float:
        """From the kill to an epoch that takes steps."""
        return self.notice + self.start + self.load + self.group

    @classmethod
    def of(cls, blow: Strike, answers: list[Answer]) -> "Loss":
        """What the supervisor's log and the clients' clocks say."""
        notice = blow.noticed_s()
        (parts,) = blow.parts_s().values()
        ready = blow.seconds_until(r"^epoch \d+ ready")
        pause = max(answer.longest_pause_s for answer in answers)
        start, load = parts["starting"], parts["loading"]
        group = ready - notice - start - load
        return cls(notice, start, load, group, pause - ready, pause)


def kill_once(server: Server, rank: int) -> Loss:
    prompts = [f"Story {index}: once upon a time" for index in range(NUM_STREAMS)]
    asks = [completion(text, max_tokens=NUM_TOKENS, ignore_eos=True) for text in prompts]
    streams = Streams(server.port, server.name, asks)
    streams.wait_until_each_began()
    time.sleep(_QUIET_S / 2)
    blow = strike(server, rank)
    answers = streams.finish()
    for answer in answers:
        if answer.error or answer.usage is None or answer.usage[1] != NUM_TOKENS:
            raise SystemExit(f"a stream is not whole: {answer.error or answer.usage}")
    wait_ready(server)
    return Loss.of(blow, answers)


def table(losses: list[Loss]) -> str:
    """Markdown; percentiles of each part for itself."""
    rows = ["| part | p50 s | p99 s | worst s |", "| --- | --- | --- | --- |"]
    names = {
        "notice": "the loss is noticed",
        "start": "a process is started",
        "load": "it loads its weights",
        "group": "the group forms, and warms up",
        "serving": "**kill to serving**",
        "first_token": "serving to the next token of the slowest stream",
        "pause": "**longest pause of a stream**",
    }
    for name, words in names.items():
        values = [getattr(loss, name) for loss in losses]
        p50, p99 = np.percentile(values, [50, 99])
        rows.append(f"| {words} | {p50:.2f} | {p99:.2f} | {max(values):.2f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    with serving("--nodes=2", "--max-model-len=1024") as server:
        losses = [kill_once(server, number % 2) for number in range(options.kills)]
    date = time.strftime("%Y-%m-%d", time.gmtime())
    where = f"{platform.machine()}, {os.cpu_count()} cores"
    found = table(losses)
    print(found)
    if options.write:
        record = {"date": date, "machine": where, "losses": [vars(loss) for loss in losses]}
        head = f"{options.kills} kills, {date}, {where}, bfloat16."
        keep(record, RECORD, f"{head}\n\n{found}", MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
