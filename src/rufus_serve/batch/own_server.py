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
from typing import IO

from rufus_serve import errors
from rufus_serve.errors import LeaderError
from rufus_serve.parent import die_with_parent

_POLL_S = 0.2
_STOP_S = 60.0


@contextlib.contextmanager
def own_server(arguments: Sequence[str], *, log: IO[bytes] | None = None) -> Iterator[str]:
    """`rufus-serve serve ARGUMENTS` on a free port of loopback, ready; its URL.

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
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()


def _await_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    while not _is_ready(url):
        code = process.poll()
        if code is not None:
            text = f"the server ended with exit code {code} before it was ready; see its log"
            raise errors.of(code, text, otherwise=LeaderError)
        time.sleep(_POLL_S)


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
