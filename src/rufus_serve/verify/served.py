"""Serves a model as long as it takes to verify it, in a process of its own."""

import contextlib
import json
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

from rufus_serve import errors
from rufus_serve.config.schema import HttpConfig, ServeConfig
from rufus_serve.errors import EndpointError, LeaderError, StartupTimeout

_POLL_S = 0.5
_STOP_S = 60.0
_SHOWN_LINES = 20


@contextlib.contextmanager
def served(config: ServeConfig) -> Iterator[str]:
    """The URL of an endpoint that serves `config` on loopback, on a free port.

    Raises:
        RufusError: what `serve` ended with, with the end of its log.
    """
    port = _free_port()
    plain = {"host": "127.0.0.1", "port": port, "api_key_file": None, "http": HttpConfig()}
    own = config.model_copy(update=plain)
    with tempfile.TemporaryDirectory(prefix="rufus-verify-") as name:
        settings, log = write_settings(own, Path(name)), Path(name) / "log"
        command = [sys.executable, "-m", "rufus_serve.cli.main", "serve", f"--config={settings}"]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            _wait_ready(process, f"http://127.0.0.1:{port}", log, _deadline_s(own))
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def write_settings(config: ServeConfig, folder: Path) -> Path:
    """A settings file of `config` in `folder`."""
    path = folder / "settings.yaml"
    # JSON is YAML; what is default may be a value that a file cannot say.
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
    return path


def _deadline_s(config: ServeConfig) -> float:
    limits = config.timeouts
    return limits.join_s + limits.load_s + limits.warm_up_s + limits.leader_start_s


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, deadline_s: float) -> None:
    until = time.monotonic() + deadline_s
    while not _is_ready(url):
        if process.poll() is not None:
            text = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
            raise errors.of(process.returncode, f"serve ended:\n{text}", otherwise=LeaderError)
        if time.monotonic() > until:
            raise StartupTimeout(f"serve was not ready after {deadline_s:g} s, the sum of its own "
                                 "limits; see timeouts")  # fmt: skip
        time.sleep(_POLL_S)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=10) as answer:  # noqa: S310
            return int(answer.status) == 200
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise EndpointError(f"no port is free on 127.0.0.1: {error}") from error
