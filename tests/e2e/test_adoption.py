"""Leaders come and go; followers keep their weights. Commands reach a running server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.server import DEMO_MODEL, Server

pytestmark = pytest.mark.timeout(300)


class Host:
    """A host on which one endpoint is started again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers: list[Server] = []

    def start(self, *, version: str = "") -> Server:
        """A ready server, of package `version`; later ones take the first one's port."""
        flags = [
            "--nodes=2", "--dtype=float32", "--max-model-len=1024",
            "--recovery.on-leader-loss=wait", f"--cluster.state-dir={self._folder}",
        ]  # fmt: skip
        if self.servers:
            flags.append(f"--port={self.servers[0].port}")
        began = time.monotonic()
        server = Server(DEMO_MODEL, *flags, environ=self._as_version(version))
        if self.servers:
            server.port = self.servers[0].port
        self.servers.append(server)
        server.wait_ready()
        waiting = "no follower" if len(self.servers) == 1 else "followers waiting"
        sys.stdout.write(f"ready after {time.monotonic() - began:.1f} s with {waiting}\n")
        return server

    def _as_version(self, version: str) -> dict[str, str]:
        """Environment in which the package calls itself `version`."""
        if not version:
            return {}
        (self._folder / "sitecustomize.py").write_text(
            "import importlib.metadata as m\nreal = m.version\n"
            f"m.version = lambda name: {version!r} if name == 'rufus-serve' else real(name)\n"
        )
        return {"PYTHONPATH": str(self._folder)}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `rufus-serve WORDS` against the endpoint."""
        place = [f"--port={self.servers[0].port}", f"--state-dir={self._folder}"]
        program = str(Path(sys.executable).parent / "rufus-serve")
        return subprocess.run(
            [program, *words, *place], capture_output=True, text=True, timeout=120, check=False
        )

    def followers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.command("status", "--json").stdout)[
            "followers"
        ]
        return found

    def clear(self) -> None:
        with contextlib.suppress(json.JSONDecodeError, subprocess.TimeoutExpired):
            for follower in self.followers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(follower["pid"]).kill()
        for server in self.servers:
            server.stop()


def runs(pid: int) -> bool:
    """Whether the process lives; one that waits to be buried by process 1 does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.clear()


def kill_leader_of(supervisor_pid: int) -> None:
    (leader,) = [
        process
        for process in psutil.Process(supervisor_pid).children()
        if process.cmdline()[1:3] == ["-m", "rufus_serve.leader"]
    ]
    leader.kill()
    leader.wait(10)


def test_followers_keep_their_weights_through_every_change_of_leader(host: Host) -> None:
    first = host.start()
    answer = first.ask("Name three rivers.", max_tokens=24)
    before = [follower["pid"] for follower in host.followers()]

    # The vLLM process dies: the supervisor starts another one.
    kill_leader_of(first.process.pid)
    first.wait_ready()
    assert first.ask("Name three rivers.", max_tokens=24) == answer

    # The whole `serve` command dies: the next one finds the followers waiting.
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait(10)
    second = host.start()
    assert second.ask("Name three rivers.", max_tokens=24) == answer
    assert "adopting follower 0" in second.log

    # A planned change of the leader, for one of a newer package that speaks the same protocol.
    drained = host.command("drain", "--keep-followers")
    assert (drained.returncode, second.process.wait(30)) == (0, 0), drained.stderr
    third = host.start(version="99.1.0")
    assert third.ask("Name three rivers.", max_tokens=24) == answer
    assert "rufus-serve 99.1.0" in third.log

    now = host.followers()
    assert [follower["pid"] for follower in now] == before
    assert [follower["load_count"] for follower in now] == [1, 1]

    # One follower is replaced on request; only that one loads.
    restarted = host.command("restart-follower", "1")
    assert restarted.returncode == 0, restarted.stderr
    assert third.ask("Name three rivers.", max_tokens=24) == answer
    pids = [follower["pid"] for follower in host.followers()]
    assert pids[0] == before[0], third.log[-4000:]
    assert pids[1] != before[1]
    nothing_is_left_after_drain(host, third, pids)


def nothing_is_left_after_drain(host: Host, server: Server, pids: list[int]) -> None:
    drained = host.command("drain")
    assert (drained.returncode, server.process.wait(30)) == (0, 0), drained.stderr
    assert [pid for pid in pids if runs(pid)] == []
    refused = host.command("status")
    assert refused.returncode == 5
    assert refused.stderr.startswith("error: no rufus-serve on port")
