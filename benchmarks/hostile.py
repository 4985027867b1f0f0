"""What hostile input does: mutated frames, requests made from the API's schema, hostile peers.

    python -m benchmarks.hostile frames [--count 1000000]
    python -m benchmarks.hostile schema [--cases 100000] [--schemathesis COMMAND]
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
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import ROOT, Server, serving

from rufus_serve.protocol.codec import CodecError, decode

RECORDED = ROOT / "tests" / "unit" / "protocol" / "recorded_frames.json"
RESULTS = ROOT / "benchmarks" / "results" / "hostile.json"
EXECUTING = ("exec", "compile", "import", "open", "os.system", "subprocess.Popen", "pickle.find")
MAX_GROWTH_BYTES = 64 << 20
MAX_DELAY_MS = 100
PAUSE_S = 2.0
"""Between an honest connection's requests: a thousand of them leave the server time to spare."""
SETTLE_S = 2.0
"""Until all attackers are at work."""
REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
FLAGS = ("--cluster.kind=local", "--max-model-len=256", "--http.docs", "--buckets.prefill=64")


def main() -> int:
    """Run one attack; 1 if it achieved anything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attack", choices=("frames", "schema", "load", "grammar"))
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--schemathesis", default="schemathesis")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--hostile", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    # As by `timeout`: the server is not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    attack = {"frames": frames, "schema": schema, "load": load, "grammar": grammar}[args.attack]
    record, is_safe = attack(args)
    print(json.dumps(record, indent=1))
    if args.write:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(kept | {args.attack: record}, indent=1) + "\n")
    return 0 if is_safe else 1


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
    """Have schemathesis make requests from the server's own OpenAPI document."""
    with small_server() as server:
        paths = json.loads(server.get("/openapi.json")[1])["paths"]
        found = [operation for methods in paths.values() for operation in methods.values()]
        # Of others there are but a few requests to make.
        operations = sum("requestBody" in operation for operation in found)
        command = [
            *args.schemathesis.split(), "run", f"{server.url}/openapi.json", "--phases=fuzzing",
            f"--max-examples={-(-args.cases // operations)}", "--checks=not_a_server_error",
            "--continue-on-failure", "--request-timeout=120", "--workers=4",
            "--suppress-health-check=all",
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        alive = server.get("/health")[0] == 200
    generated = re.search(r"(\d+) generated", said)
    record = {
        "operations": operations,
        "cases": int(generated[1]) if generated else 0,
        "exit_code": done.returncode,
        "server_alive": alive,
        "seconds": round(time.monotonic() - began, 1),
    }
    if done.returncode or not generated:
        print(said[-6000:], file=sys.stderr)
    return record, done.returncode == 0 and alive


@contextlib.contextmanager
def small_server() -> Iterator[Server]:
    """A server of a random model that answers fast."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        model = tiny_checkpoint(Path(folder) / "tiny", "llama")
        # Who does not say how many tokens it wants gets few, as most made requests do not.
        (model / "generation_config.json").write_text('{"max_new_tokens": 4}')
        with serving(model, *FLAGS, "--timeouts.step-floor-s=60") as server:
            yield server


def load(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Honest clients, alone and beside hostile ones, in turns."""
    with small_server() as server:
        address = ("127.0.0.1", server.port)
        runs = {"alone": [], "beside": []}  # type: dict[str, list[float]]
        for _ in range(3):
            for name, share in (("alone", 0.0), ("beside", args.hostile)):
                hostile = int(args.connections * share)
                found = asyncio.run(
                    one_turn(address, args.connections - hostile, hostile, args.seconds / 6)
                )
                runs[name].append(found)
        health = [timed(lambda: server.get("/health")) for _ in range(20)]
    p99 = {name: round(statistics.median(found) * 1000, 1) for name, found in runs.items()}
    ratio = p99["beside"] / p99["alone"]
    record = {
        "connections": args.connections,
        "hostile": int(args.connections * args.hostile),
        "honest_p99_ms": p99,
        "ratio": round(ratio, 3),
        "health_after_ms": round(statistics.median(health) * 1000, 1),
    }
    return record, ratio < 1.1


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


async def one_turn(address: tuple[str, int], honest: int, hostile: int, seconds: float) -> float:
    """The 99th percentile of the honest requests' seconds."""
    taken: list[float] = []
    # In a process of their own: what attackers do must not delay how honest ones are timed.
    attackers = multiprocessing.Process(target=attack, args=(address, hostile), daemon=True)
    attackers.start()
    await asyncio.sleep(SETTLE_S)
    ends = time.monotonic() + seconds
    try:
        await asyncio.gather(*(ask(address, ends, taken) for _ in range(honest)))
    finally:
        attackers.kill()
        attackers.join()
    return statistics.quantiles(taken, n=100)[98]


def attack(address: tuple[str, int], hostile: int) -> None:
    """All kinds of hostile peers at once, until this process is killed."""
    os.nice(19)  # attackers bring processors of their own
    kinds: list[Callable[..., Coroutine[Any, Any, None]]] = [
        idle, drip_head, drip_body, unread, huge,
    ]  # fmt: skip

    async def together() -> None:
        await asyncio.gather(*(kinds[number % len(kinds)](address) for number in range(hostile)))

    asyncio.run(together())


async def ask(address: tuple[str, int], ends: float, taken: list[float]) -> None:
    """One honest connection: a request every other second."""
    await asyncio.sleep(random.random() * PAUSE_S)
    reader, writer = await asyncio.open_connection(*address)
    while time.monotonic() < ends:
        began = time.monotonic()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 200")
        assert length
        await reader.readexactly(int(length[1]))
        taken.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE_S)
    writer.close()


async def idle(address: tuple[str, int]) -> None:
    """Connect and say nothing."""
    await speak(address, [b""], pause_s=60)


async def drip_head(address: tuple[str, int]) -> None:
    """Send headers without end, slowly."""
    await speak(address, [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n"] * 10_000], pause_s=0.2)


async def drip_body(address: tuple[str, int]) -> None:
    """Send a body byte by byte."""
    fields = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\n" + fields + b"\r\n"
    await speak(address, [head, *[b" "] * 10_000], pause_s=0.2)


async def unread(address: tuple[str, int]) -> None:
    """Ask again and again, and read nothing."""
    await speak(address, [REQUEST * 50] * 10_000, pause_s=0.2)


async def huge(address: tuple[str, int]) -> None:
    """Send headers of megabytes."""
    await speak(address, [b"GET / HTTP/1.1\r\nX: " + b"a" * 4_000_000], pause_s=0.2)


async def speak(address: tuple[str, int], parts: list[bytes], *, pause_s: float) -> None:
    """Send `parts`, and begin again whenever the server hangs up."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*address)
            for part in parts:
                writer.write(part)
                await asyncio.wait_for(writer.drain(), 60)
                await asyncio.sleep(pause_s)
            writer.close()
        await asyncio.sleep(pause_s)


if __name__ == "__main__":
    sys.exit(main())
