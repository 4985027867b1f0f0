"""`rufus-serve top` over HTTP."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from tests.unit.cli.test_top import NOW

from rufus_serve.cli.main import main
from rufus_serve.errors import EndpointError


@pytest.fixture
def endpoint() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["Authorization"] == "Bearer k" and self.path == "/overview"
            self.send_response(200 if good else 403)
            self.end_headers()
            refusal = b'{"error": {"message": "this needs metrics"}}'
            self.wfile.write(msgspec.json.encode(NOW) if good else refusal)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_one_look_is_printed(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--url", endpoint + "/v1", "--api-key", "k"]) == 0
    assert "recovering" in capsys.readouterr().out
    assert main(["top", "--once", "--url", endpoint]) == EndpointError.exit_code
    assert "this needs metrics" in capsys.readouterr().err


def heed_ctrl_c() -> None:
    """As a terminal starts programs; a test run in the background ignores it, and its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_watch_is_renewed_until_ctrl_c(endpoint: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rufus_serve.cli.main", "top", "--url", endpoint]
    command += ["--api-key", "k", "--interval", "0.05"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - sets a signal
    )
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 30
    while seen.count(b"rufus-serve ") < 3:
        assert time.monotonic() < deadline, seen
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # what a terminal says once its program is gone
        while os.read(ours, 65536):
            pass
    assert process.wait(10) == 0
    os.close(ours)
