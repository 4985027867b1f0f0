"""Soak: clients stream while processes of the server are killed, again and again.

    python -m benchmarks.chaos [--minutes 30] [--clients 16] [--interval 10] [--groups 1]
        [--out FILE] [--log FILE]

Starts a server of its own on 127.0.0.1, collects undisturbed answers first, and then compares
every answer with them. Half of the blows fall on a follower (some are stopped, not killed), a
quarter on an engine or a zygote, of which engines are forked, the others on any process of Ray's,
the driver among them. All deadlines are the defaults. Ends with 1 if an answer was wrong or lost,
or anything leaked. `--out` keeps the record (`make chaos` does: benchmarks/results/chaos.json).
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tests.e2e.losses import (
    LogLine,
    api_process_of,
    engines_of,
    serving,
    status_of,
    supervisor_lines,
    wait_ready,
    zygotes_of,
)
from tests.e2e.ray_losses import VICTIMS, ray_processes
from tests.e2e.server import Server
from tests.e2e.streams import Answer, Ask, Streams, chat, chunks, completion, every_kind

MODEL_FLAGS = ("--dtype=float32", "--max-model-len=1024", "--buckets.prefill=64,256")
FOLLOWER_SHARE, LEADER_SHARE, HANG_SHARE, DISCONNECT_SHARE = 0.5, 0.25, 0.2, 0.15
SETTLED_S = 15.0
"""Age of a follower from which its memory should not grow."""
_EPOCH = r"epoch \d+(?P<group> of group \S+)? "
_OVER, _READY = re.compile(_EPOCH + "is over"), re.compile(_EPOCH + "ready")
TOPICS = ("the sea", "tea", "Rome", "wolves", "glass", "chess", "rain", "the number seven")


def catalogue() -> list[Ask]:
    """What clients ask for."""
    asks = every_kind(32)
    asks += [chat(f"What is there to say about {topic}?", max_tokens=32) for topic in TOPICS]
    asks += [
        completion(f"A poem about {topic}:", temperature=1.0, seed=index, max_tokens=32)
        for index, topic in enumerate(TOPICS)
    ]
    asks.append(completion(list(range(1000, 1700)), max_tokens=8, ignore_eos=True))
    return asks


@dataclass(frozen=True)
class Blow:
    """One signal; `at` is in seconds since 1970."""

    at: float
    victim: str


@dataclass
class Tally:
    """What happened so far; each field belongs to one kind of thread, under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    def add(self, what: str, detail: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            if detail and len(self.failures) < 20:
                self.failures.append(f"{what}: {detail}")


class Client:
    """One client that asks without end, and hangs up in the middle now and then."""

    def __init__(self, server: Server, expected: list[tuple[Ask, Answer]], tally: Tally) -> None:
        self._server, self._expected, self._tally = server, expected, tally

    def run(self, seed: int, ends_at: float) -> None:
        dice = random.Random(seed)
        while time.monotonic() < ends_at:
            ask, expected = dice.choice(self._expected)
            if dice.random() < DISCONNECT_SHARE:
                self._hang_up(ask, dice.randrange(12))
            else:
                self._check(ask, expected)

    def _hang_up(self, ask: Ask, after: int) -> None:
        stream = chunks(self._server.port, self._server.name, ask)
        for _ in itertools.islice(stream, after):
            pass
        stream.close()
        self._tally.add("disconnected")

    def _check(self, ask: Ask, expected: Answer) -> None:
        answer = Answer()
        for chunk in chunks(self._server.port, self._server.name, ask):
            answer.take(chunk)
        with self._tally.lock:
            self._tally.pauses_s.append(answer.longest_pause_s)
        try:
            answer.assert_same(expected)
        except AssertionError as error:
            self._tally.add("lost" if answer.error else "wrong", f"{ask.body}: {error}")
        else:
            self._tally.add("completed")


def strike_now_and_then(
    server: Server,
    tally: Tally,
    dice: random.Random,
    *,
    memory: "FollowerMemory",
    interval_s: float,
    ends_at: float,
) -> list[Blow]:
    """Blows at random moments, also while the group recovers from the last."""
    blows: list[Blow] = []
    while True:
        time.sleep(dice.uniform(0, 2 * interval_s))
        if time.monotonic() > ends_at:
            return blows
        memory.look()
        try:
            victim, found, number = choose_victim(server, dice)
            os.kill(dice.choice(found), number)
        except (IndexError, ValueError, psutil.NoSuchProcess, ProcessLookupError):
            continue  # there is none just now
        blows.append(Blow(time.time(), victim))
        tally.add(signal.Signals(number).name)


def choose_victim(server: Server, dice: random.Random) -> tuple[str, list[int], int]:
    """A kind of process, the ids of those there are, and the signal for one of them."""
    share = dice.random()
    if share < FOLLOWER_SHARE:
        followers = [each.pid for each in status_of(server).followers if each.pid]
        if dice.random() < HANG_SHARE:
            return "follower, stopped", followers, signal.SIGSTOP
        return "follower", followers, signal.SIGKILL
    if share < FOLLOWER_SHARE + LEADER_SHARE:
        if dice.random() < 0.5:
            return "engine", [each.pid for each in engines_of(server)], signal.SIGKILL
        return "zygote", [each.pid for each in zygotes_of(server)], signal.SIGKILL
    victim = dice.choice(list(VICTIMS))
    return victim, [each.pid for each in ray_processes(server, victim)], signal.SIGKILL


def by_victim(blows: list[Blow], lines: list[LogLine]) -> dict[str, dict[str, Any]]:
    """Per kind of process: blows, epochs they ended, and how long the group was away then."""
    found: dict[str, dict[str, Any]] = {}
    for blow, following in itertools.zip_longest(blows, blows[1:]):
        until = following.at if following else math.inf
        ended = [line.at for line in lines if blow.at <= line.at < until and _OVER.match(line.text)]
        entry = found.setdefault(blow.victim, {"blows": 0, "epochs_ended": 0, "away_s": []})
        entry["blows"] += 1
        entry["epochs_ended"] += len(ended)
        entry["away_s"] += outages([line for line in lines if ended and line.at >= ended[0]])[:1]
    return {
        victim: entry | {"away_s": percentiles(entry["away_s"])}
        for victim, entry in sorted(found.items())
    }


def outages(lines: list[LogLine]) -> list[float]:
    """Seconds from the end of each epoch to its group's next that was ready, losses between too."""
    found: list[float] = []
    over: dict[str, float] = {}
    for line in lines:
        if ended := _OVER.match(line.text):
            over.setdefault(ended["group"], line.at)
        elif (ready := _READY.match(line.text)) and ready["group"] in over:
            found.append(line.at - over.pop(ready["group"]))
    return found


def memory_mb(server: Server) -> dict[str, float]:
    """Resident megabytes of the processes that live through it all."""
    supervisor, api = psutil.Process(server.process.pid), api_process_of(server)
    return {"supervisor": supervisor.memory_info().rss / 1e6, "API": api.memory_info().rss / 1e6}


class FollowerMemory:
    """Memory of follower processes over their lives, looked at now and then."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._first: dict[psutil.Process, float] = {}
        self._longest = (0.0, 0.0)

    def look(self) -> None:
        """Note each follower's memory once it has served for a while, and how it grew since."""
        for process in self._server.followers():
            with contextlib.suppress(psutil.NoSuchProcess):
                age_s = time.time() - process.create_time()
                if age_s < SETTLED_S:
                    continue
                rss_mb = process.memory_info().rss / 1e6
                first_mb = self._first.setdefault(process, rss_mb)
                self._longest = max(self._longest, (age_s, rss_mb - first_mb))

    def report(self) -> dict[str, float]:
        """Of the follower that lived longest, in megabytes and minutes; empty if none settled."""
        age_s, grown_mb = self._longest
        return {"lived_min": round(age_s / 60, 1), "grown_mb": round(grown_mb, 1)} if age_s else {}


def percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(max(values), 2)}


def soak(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Answers as expected, blows, answers compared; the record."""
    asks, tally = catalogue(), Tally()
    answers: list[Answer] = []
    for start in range(0, len(asks), 8):
        answers += Streams(server.port, server.name, asks[start : start + 8]).finish()
    before, log_length, memory = memory_mb(server), len(server.log), FollowerMemory(server)
    ends_at = time.monotonic() + 60 * arguments.minutes
    client = Client(server, list(zip(asks, answers, strict=True)), tally)
    with ThreadPoolExecutor(arguments.clients) as pool:
        runs = [pool.submit(client.run, seed, ends_at) for seed in range(arguments.clients)]
        blows = strike_now_and_then(
            server, tally, random.Random(arguments.seed),
            memory=memory, interval_s=arguments.interval, ends_at=ends_at,
        )  # fmt: skip
        for run in runs:
            run.result()
    wait_ready(server)
    time.sleep(1.0)
    after = memory_mb(server)
    memory.look()
    lines = supervisor_lines(server.log[log_length:])
    return {
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "followers": arguments.nodes * arguments.groups,
        **found(server, tally),
        "recovery_s": percentiles(outages(lines)),
        "by_victim": by_victim(blows, lines),
        "memory_growth_mb": {role: round(after[role] - before[role], 1) for role in before},
        "longest_living_follower": memory.report(),
    }


def found(server: Server, tally: Tally) -> dict[str, Any]:
    """What came of the requests, and what the server holds at the end."""
    counts = tally.counts
    return {
        "kills": counts["SIGKILL"],
        "hangs": counts["SIGSTOP"],
        "completed": counts["completed"],
        "disconnected": counts["disconnected"],
        "wrong_texts": counts["wrong"],
        "lost_requests": counts["lost"],
        "requests_left_running": server.metric("vllm:num_requests_running")
        + server.metric("vllm:num_requests_waiting"),
        "kv_cache_left_used": server.metric("vllm:kv_cache_usage_perc"),
        "followers_at_the_end": len(server.followers()),
        "ray_restarts": status_of(server).cluster_restarts,
        "longest_pause_of_a_stream_s": percentiles(tally.pauses_s),
        "failures": tally.failures,
    }


def faults_of(record: dict[str, Any]) -> list[str]:
    """Fields of `record` that must be zero and are not."""
    must_be_zero = (
        "wrong_texts", "lost_requests", "requests_left_running", "kv_cache_left_used",
        "leaked_processes",
    )  # fmt: skip
    found = [name for name in must_be_zero if record[name]]
    return found + ["followers_at_the_end"] * (
        record["followers_at_the_end"] != record["followers"]
    )


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--interval", type=float, default=10.0, help="mean seconds between blows")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--log", type=Path, help="keep what the server says, to look into an outage"
    )
    return parser.parse_args(words)


def main() -> int:
    arguments = arguments_of(sys.argv[1:])
    sizes = (f"--nodes={arguments.nodes}", f"--groups={arguments.groups}")
    with serving(*sizes, *MODEL_FLAGS) as server:
        record = soak(server, arguments)
        code = server.stop()
        if arguments.log:
            arguments.log.write_text(server.log)
        time.sleep(5.0)
        left = [entry for entry in server.remains() if not entry.startswith("/")]
    record |= {"exit_code": code, "leaked_processes": len(left)}
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, CPU runtime"
    for name, value in record.items():
        print(f"{name:32} {value}")
    if arguments.out:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    faults = faults_of(record)
    print(f"FAILED: {', '.join(faults)}" if faults else "nothing wrong, lost or leaked")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
