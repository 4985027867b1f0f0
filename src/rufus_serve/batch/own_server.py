"""A server of one's own for the length of a command."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from rufus_serve import errors
from rufus_serve.batch.lines import BatchLine, Reply
from rufus_serve.batch.runner import NotNow, Send
from rufus_serve.errors import LeaderError
from rufus_serve.parent import die_with_parent

_POLL_S = 0.2
_STOP_S = 60.0


class Pollable(Protocol):
    """What is asked of the server's process."""

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""


@dataclass(frozen=True)
class OwnServer:
    """A server that runs, or has run."""

    url: str
    process: Pollable

    def watched(self, send: Send) -> Send:
        """`send`, which raises the error that the server ended with, once it has."""

        async def ask(line: BatchLine) -> Reply:
            try:
                return await send(line)
            except NotNow:
                self.check("; answers so far are kept, and the same command goes on from there")
                raise

        return ask

    def check(self, consequence: str) -> None:
        """Raise if it has ended: the error is of the class that its exit code tells."""
        code = self.process.poll()
        if code is not None:
            text = f"the server ended with exit code {code}{consequence}; see its log"
            raise errors.of(code, text, otherwise=LeaderError)


@contextlib.contextmanager
def own_server(arguments: Sequence[str], *, log: IO[bytes] | None = None) -> Iterator[OwnServer]:
    """`rufus-serve serve ARGUMENTS` on a free port of loopback, ready.

    What it prints goes to `log`, or to our standard error. It ends with the block, and with this
    process.

    Raises:
        RufusError: it did not start; with its exit code.
    """
    port = _free_port()
    command = [sys.executable, "-m", "rufus_serve.cli.main", "serve", *arguments]
    process = subprocess.Popen(
        [*command, f"--port={port}", "--host=127.0.0.1"],
        stdout=log or sys.stderr.fileno(),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads yet
    )
    server = OwnServer(f"http://127.0.0.1:{port}", process)
    try:
        while not _is_ready(server.url):
            server.check(" before it was ready")
            time.sleep(_POLL_S)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
