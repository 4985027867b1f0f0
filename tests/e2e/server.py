"""Starts `rufus-serve serve` as a user would, waits for it, and takes it down."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / ".models" / "smollm2-135m-instruct"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One running `rufus-serve serve`."""

    def __init__(self, model: Path, *flags: str, environ: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.model = model
        self.log_path = Path(tempfile.mkstemp(prefix="rufus-e2e-", suffix=".log")[1])
        command = [
            str(Path(sys.executable).parent / "rufus-serve"), "serve", str(model),
            f"--port={self.port}", *flags,
        ]  # fmt: skip
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | (environ or {}),
                start_new_session=True,
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

    def wait_ready(self, *, deadline_s: float = 90.0) -> None:
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

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def followers(self) -> list[psutil.Process]:
        """Follower processes, oldest first."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[1:3] == ["-m", "rufus_serve.follower"]:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def stop(self, number: int = signal.SIGTERM, *, deadline_s: float = 60.0) -> int:
        """Ask it to end; its exit code."""
        if self.process.poll() is None:
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
    model: Path = DEMO_MODEL, *flags: str, environ: dict[str, str] | None = None
) -> Iterator[Server]:
    """A ready server for the length of the block."""
    server = Server(model, *flags, environ=environ)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()
        server.log_path.unlink(missing_ok=True)
