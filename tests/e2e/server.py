"""Starts `rufus-serve serve` as a user would, waits for it, and takes it down."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / ".models" / "smollm2-135m-instruct"
_TAG = "E2E_SERVER_TAG"
"""Environment variable that everything a server starts inherits."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shadowing(folder: Path) -> Path:
    """A working directory with modules that fail, named like those that a server imports."""
    for name in ("vllm", "ray", "torch", "rufus_serve"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    for name in ("queue.py", "random.py"):
        (folder / name).write_text("raise ImportError('the wrong one')\n")
    return folder


def _is_trial(path: Path) -> bool:
    """Whether tempfile wrote this to see if it may, and its process was killed that instant."""
    return re.fullmatch("[a-z0-9_]{8}", path.name) is not None and path.is_file()


class Server:
    """One running `rufus-serve serve`."""

    def __init__(
        self,
        model: Path,
        *flags: str,
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.model = model
        self.folder = Path(tempfile.mkdtemp(prefix="e2e-"))
        self.tag = uuid.uuid4().hex
        self._sessions: set[int] = set()
        """POSIX sessions of processes seen: some write over the environment that has the tag."""
        self.log_path = self.folder / "log"
        self.temporary = self.folder / "t"
        self.temporary.mkdir()
        command = [
            str(Path(sys.executable).parent / "rufus-serve"), "serve", str(model),
            f"--port={self.port}", *flags,
        ]  # fmt: skip
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {_TAG: self.tag, "TMPDIR": str(self.temporary)} | (environ or {}),
                start_new_session=True,
                cwd=cwd,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, *, deadline_s: float = 180.0) -> None:
        deadline = time.monotonic() + deadline_s
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {deadline_s} s:\n{self.log}")
            time.sleep(0.1)

    def get(self, path: str) -> tuple[int, str]:
        """Status (0: no connection) and body of a GET."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (OSError, TimeoutError):
            return 0, ""

    def post(self, path: str, body: Any, *, timeout_s: float = 60.0) -> tuple[int, Any]:
        """Status and decoded JSON answer; `body` is sent as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                code, text = error.code, error.read().decode()
        try:
            return code, json.loads(text)
        except json.JSONDecodeError:
            return code, text

    def client(self) -> openai.OpenAI:
        """The official client, without retries; a context manager."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0, timeout=90)

    def ask(self, question: str = "What is the capital of France?", **fields: Any) -> str:
        """The greedy answer to a chat question."""
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 16,
        }
        status, answer = self.post("/v1/chat/completions", body | fields)
        assert status == 200, (status, answer)
        return str(answer["choices"][0]["message"]["content"])

    def greedy(self, tokens: list[int], count: int, **fields: Any) -> list[int]:
        """`count` greedy token ids after `tokens`, end of text ignored."""
        body = {
            "model": self.name,
            "prompt": tokens,
            "temperature": 0,
            "max_tokens": count,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        status, answer = self.post("/v1/completions", body | fields)
        assert status == 200, (status, answer)
        found: list[int] = answer["choices"][0]["token_ids"]
        return found

    def metric(self, name: str) -> float:
        """Sum of a metric's samples over all labels."""
        lines = self.get("/metrics")[1].splitlines()
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert samples, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in samples)

    def remains(self) -> list[str]:
        """Processes and files of this server that should be gone once it has ended."""
        found = [f"{p.pid} {' '.join(p.cmdline())[:120]}" for p in self.tagged()]
        kept = "torchinductor_"  # torch's cache
        files = [path for path in self.temporary.iterdir() if not path.name.startswith(kept)]
        return found + [str(path) for path in files if not _is_trial(path)]

    def assert_nothing_remains(self, *, deadline_s: float = 5.0) -> None:
        deadline = time.monotonic() + deadline_s
        while (left := self.remains()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, left

    def tagged(self) -> list[psutil.Process]:
        """All processes of this server, wherever they stand in the tree; no zombies."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                session = os.getsid(process.pid)
                ours = process.environ().get(_TAG) == self.tag or session in self._sessions
                if ours and process.status() != "zombie":
                    self._sessions.add(session)
                    found.append(process)
        return found

    def remove(self) -> None:
        """Kill what is left and delete the server's files."""
        for process in self.tagged():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def followers(self) -> list[psutil.Process]:
        """Follower processes, oldest first; they may have outlived whoever started them."""
        found = []
        for process in self.tagged():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:3] == ["-m", "rufus_serve.follower"]:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def stop(self, number: int = signal.SIGTERM, *, deadline_s: float = 60.0) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
            self.tagged()
            self.process.send_signal(number)
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            raise AssertionError(f"did not end within {deadline_s} s:\n{self.log}") from None


@contextlib.contextmanager
def serving(
    model: Path = DEMO_MODEL,
    *flags: str,
    environ: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Server]:
    """A ready server for the length of the block."""
    server = Server(model, *flags, environ=environ, cwd=cwd)
    try:
        server.wait_ready()
        yield server
    finally:
        try:
            server.stop()
        finally:
            server.remove()
