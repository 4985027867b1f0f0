"""What hostile input does: mutated frames, requests made from the API's schema, hostile peers.

    python -m benchmarks.hostile frames [--count 1000000]
    python -m benchmarks.hostile schema [--cases 100000] [--limit-s 600] [--python FILE]
    python -m benchmarks.hostile load [--connections 1000] [--hostile 0.1] [--seconds 60]
    python -m benchmarks.hostile grammar [--seconds 60]

Each prints a record, keeps it with `--write` (benchmarks/results/hostile.json), and ends with 1
if something was executed, grew, was answered with a server's error, or delayed others. All but
`frames` start a server of their own on 127.0.0.1.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from benchmarks.hostile_peers import Turn, least_server, take_turns
from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import ROOT, Server, serving

from rufus_serve.protocol.codec import CodecError, decode

RECORDED = ROOT / "tests" / "unit" / "protocol" / "recorded_frames.json"
RESULTS = ROOT / "benchmarks" / "results" / "hostile.json"
EXECUTING = ("exec", "compile", "import", "open", "os.system", "subprocess.Popen", "pickle.find")
MAX_GROWTH_BYTES = 64 << 20
MAX_DELAY_MS = 100
MAX_RATIO = 1.1
JOBS = 2
"""Processes that make requests from the schema at once."""
FLAGS = (
    "--cluster.kind=local", "--max-model-len=256", "--http.docs", "--buckets.prefill=64",
    "--timeouts.step-floor-s=60", "--limits.max-n=8", "--dtype=bfloat16",
)  # fmt: skip


def main() -> int:
    """Run one attack; 1 if it achieved anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attack", choices=("frames", "schema", "load", "grammar"))
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--python", default=".venv-hostile/bin/python")
    parser.add_argument("--limit-s", type=float, default=math.inf)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--hostile", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    # As by `timeout`: the server is not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    attack = {"frames": frames, "schema": schema, "load": load, "grammar": grammar}[args.attack]
    record, is_safe = attack(args)
    print(json.dumps(record, indent=1))
    if args.write:
        write(args.attack, record)
    return 0 if is_safe else 1


def write(attack: str, record: dict[str, Any]) -> None:
    """Keep a record beside those of the other attacks."""
    RESULTS.write_text(json.dumps(kept() | {attack: record}, indent=1) + "\n")


def kept() -> dict[str, Any]:
    """The records kept so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def frames(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Mutate recorded frames of all conversations and decode them."""
    seeds = list(recorded_frames())
    executed: Counter[str] = Counter()
    watching = False

    def audit(event: str, _: Any) -> None:
        if watching and event.startswith(EXECUTING):
            executed[event] += 1

    sys.addaudithook(audit)
    rng, outcomes = random.Random(0), Counter[str]()
    before = 0
    for number in range(args.count):
        if number == args.count // 10:
            # What the first tenth allocates for good is caches.
            before, watching = psutil.Process().memory_info().rss, True
        try:
            decode([memoryview(frame) for frame in mutated(rng, rng.choice(seeds))])
            outcomes["decoded"] += 1
        except CodecError:
            outcomes["refused"] += 1
    watching = False
    growth = psutil.Process().memory_info().rss - before
    record = {
        "frames": args.count,
        "outcomes": dict(outcomes),
        "executed": dict(executed),
        "growth_mb": round(growth / 1e6, 1),
    }
    return record, not executed and growth < MAX_GROWTH_BYTES


def recorded_frames() -> Iterator[list[bytes]]:
    """One message of each kind, as it was first recorded."""
    for recorded in json.loads(RECORDED.read_text()).values():
        if isinstance(recorded, list) and all(isinstance(text, str) for text in recorded):
            yield [bytes.fromhex(text) for text in recorded]


def mutated(rng: random.Random, message: list[bytes]) -> list[bytes]:
    """A message with a few bytes changed, cut, repeated, or taken from chance."""
    parts = [bytearray(frame) for frame in message]
    for _ in range(rng.randint(1, 4)):
        part = rng.choice(parts)
        at = rng.randrange(len(part) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(part):
            part[at] = rng.randrange(256)
        elif kind == 1:
            del part[at : at + rng.randint(1, 16)]
        elif kind == 2:
            part[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 3:
            part[at : at + 4] = rng.choice(
                (b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\xdd" * 4)
            )
        elif len(parts) < 8:
            parts.insert(rng.randrange(len(parts) + 1), bytearray(part[at:]))
    return [bytes(part) for part in parts]


def schema(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Requests made from the server's own OpenAPI document, on top of those of earlier runs."""
    record = kept().get("schema")
    if record is None or record["server_errors"]:
        # Once mended, what found it is sent again.
        record = {"cases": 0, "seeds": 0, "counts": {}, "statuses": {}}
    began = time.monotonic()
    record["server_errors"] = errors = []  # type: list[dict[str, Any]]
    alive = True
    with small_server() as server:
        while record["cases"] < args.cases and time.monotonic() - began < args.limit_s and alive:
            seeds = range(record["seeds"], record["seeds"] + JOBS)
            for found in attacked_with(server, args.python, seeds):
                for name in ("counts", "statuses"):
                    record[name] = dict(Counter(record[name]) + Counter(found[name]))
                errors += found["server_errors"]
            record["seeds"] = seeds.stop
            record["cases"] = sum(record["statuses"].values())
            alive = server.get("/health")[0] == 200
            print(record["cases"], "cases", len(errors), "5xx", file=sys.stderr, flush=True)
            if args.write:
                write("schema", record)
    return record | {"server_alive": alive}, alive and not errors


def attacked_with(server: Server, python: str, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """What processes that attack at once, each with one seed, report.

    Raises:
        subprocess.CalledProcessError: one of them failed; what it printed says why.
    """
    command = [
        python,
        str(Path(__file__).with_name("hostile_requests.py")),
        server.url,
        server.name,
    ]
    running = [
        subprocess.Popen([*command, f"--seed={seed}"], stdout=subprocess.PIPE, text=True)
        for seed in seeds
    ]
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        yield json.loads(said)


@contextlib.contextmanager
def small_server() -> Iterator[Server]:
    """A server of a random model that answers fast."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        model = tiny_checkpoint(Path(folder) / "tiny", "llama")
        # Who does not say how many tokens it wants gets few, as most made requests do not.
        (model / "generation_config.json").write_text('{"max_new_tokens": 2}')
        # Two threads of a matrix this small mostly wait for each other.
        with serving(model, *FLAGS, environ={"OMP_NUM_THREADS": "1"}) as server:
            yield server


def load(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Honest clients while attackers are at the server, and while they are at another listener."""
    hostile = int(args.connections * args.hostile)
    with small_server() as server, least_server() as elsewhere:
        found = asyncio.run(
            take_turns(
                ("127.0.0.1", server.port),
                api_process(server),
                elsewhere,
                honest=args.connections - hostile,
                hostile=hostile,
                seconds=args.seconds,
                rounds=args.rounds,
            )
        )
        health = [timed(lambda: server.get("/health")) for _ in range(20)]
    pairs = zip(found["at it"], found["elsewhere"], strict=True)
    ratios = [here.p99_ms / there.p99_ms for here, there in pairs]
    record = {
        "connections": args.connections,
        "hostile": hostile,
        "seconds": args.seconds,
        **{
            name: {where: round(median_of(turns, name), 3) for where, turns in found.items()}
            for name in ("p50_ms", "p99_ms", "cores")
        },
        "ratio_of_rounds": [round(ratio, 2) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "health_after_ms": round(statistics.median(health) * 1000, 1),
    }
    return record, record["ratio"] < MAX_RATIO


def median_of(turns: list[Turn], name: str) -> float:
    """Of one figure of turns."""
    return statistics.median(getattr(turn, name) for turn in turns)


def api_process(server: Server) -> psutil.Process:
    """The process that accepts connections."""
    children = psutil.Process(server.process.pid).children()
    return next(each for each in children if each.cmdline()[-1] == "rufus_serve.leader")


def grammar(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Plain requests one after another, alone and beside schemas that are costly to compile."""
    with small_server() as server:
        plain = {"model": server.name, "prompt": "a b c", "max_tokens": 4}
        taken = {"alone": [], "beside": []}  # type: dict[str, list[float]]
        for turn in range(2):
            for name, seconds in taken.items():
                ends = time.monotonic() + args.seconds / 4
                bombs = [Bomber(server, ends, turn * 10 + n) for n in range(2)]
                for bomb in bombs if name == "beside" else ():
                    bomb.start()
                while time.monotonic() < ends:
                    seconds.append(timed(lambda: server.post("/v1/completions", plain)))
                for bomb in bombs if name == "beside" else ():
                    bomb.join()
    p99 = {name: statistics.quantiles(found, n=100)[98] for name, found in taken.items()}
    delay_ms = (p99["beside"] - p99["alone"]) * 1000
    record = {
        "plain_requests": {name: len(found) for name, found in taken.items()},
        "plain_p50_ms": {
            name: round(statistics.median(found) * 1000, 1) for name, found in taken.items()
        },
        "plain_p99_ms": {name: round(found * 1000, 1) for name, found in p99.items()},
        "delay_p99_ms": round(delay_ms, 1),
    }
    return record, delay_ms <= MAX_DELAY_MS


class Bomber(threading.Thread):
    """Asks for answers by schemas that nobody asked for before, each as large as is allowed."""

    def __init__(self, server: Server, ends: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._server, self._ends, self._seed = server, ends, seed

    def run(self) -> None:
        """Ask until the time is over."""
        number = self._seed * 1000
        while time.monotonic() < self._ends:
            number += 1
            names = [f"p{number}x{index}" for index in range(256)]
            texts = {name: {"type": "string", "pattern": "[a-z]{1,30}"} for name in names}
            schema = {"type": "object", "properties": texts, "required": names}
            body = {"model": self._server.name, "prompt": "a", "max_tokens": 1}
            self._server.post("/v1/completions", body | {"structured_outputs": {"json": schema}})


def timed(call: Callable[[], Any]) -> float:
    """Seconds that `call` takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
