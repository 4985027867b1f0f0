"""`rufus-serve doctor --all-nodes` over two hosts: well, behind a firewall, with another MTU."""

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import DEMO_MODEL
from tests.multihost import hosts
from tests.multihost.hosts import PROGRAM, Network

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing()),
]

RAY_PORT = 6390
"""Ray sees the heads of all namespaces' processes, and starts no second one at the same address."""


class Pair:
    """Two hosts, on the second of which a follower waits."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.first, self.second = network.hosts
        self.folder = folder
        self.token = folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.follower = self.second.start(
            PROGRAM, "follower", f"--leader={self.first.address}:{RAY_PORT}",
            f"--token-file={self.token}", log=folder / "follower.log",
        )  # fmt: skip

    def _settings(self) -> tuple[str, ...]:
        return (
            str(DEMO_MODEL), "--nodes=2", "--max-model-len=512",
            f"--cluster.token-file={self.token}", "--cluster.interface=eth0",
            f"--cluster.state-dir={self.folder}", f"--cluster.ray-port={RAY_PORT}",
        )  # fmt: skip

    def examine(self, *, code: int) -> dict[str, list[dict[str, Any]]]:
        """Findings by check, as the doctor on the first host has them."""
        done = subprocess.run(
            [
                "ip", "netns", "exec", self.first.name, PROGRAM, "doctor", "--all-nodes",
                "--json", *self._settings(),
            ],
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == code, (done.stdout, done.stderr)
        found: dict[str, list[dict[str, Any]]] = {}
        for finding in json.loads(done.stdout)["findings"]:
            found.setdefault(finding["check"], []).append(finding)
        return found

    def serve(self) -> "subprocess.Popen[bytes]":
        """A server over both hosts, once it is ready."""
        log = self.folder / "serve.log"
        server = self.first.start(PROGRAM, "serve", *self._settings(), log=log)
        deadline = time.monotonic() + 150
        while not self.is_ready():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.25)
        return server

    def is_ready(self) -> bool:
        return self.first.fetch("http://127.0.0.1:8000/ready").endswith("200")

    def on_second(self, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.second.name, *words], check=True)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Network(2) as network:
        pair = Pair(network, tmp_path)
        yield pair
        pair.follower.terminate()
        pair.follower.wait(60)


def test_hosts_that_are_well_reach_each_other_on_the_ports_of_the_firewall_table(
    pair: Pair,
) -> None:
    found = pair.examine(code=0)
    (reached,) = found["reachability"]
    # Each way: two of the rendezvous and two of Ray's; one way each: step and control.
    assert (reached["level"], reached["what"].split(",")[0]) == ("ok", "10 connections")
    ports = " ".join(finding["what"] for finding in found["ports"])
    assert "8000, 6400, 6401, 6402, 6417 can be listened on" in ports
    assert "1500 everywhere, least path MTU 1500" in found["mtu"][0]["what"]
    assert found["clock"][0]["level"] == "ok"


def test_a_port_that_a_firewall_drops_and_another_mtu_are_named(pair: Pair) -> None:
    # As a firewall drops packets without a word: no answer of that port leaves the host.
    pair.on_second("ip", "rule", "add", "ipproto", "tcp", "sport", "6402", "blackhole")
    pair.on_second("ip", "link", "set", "dev", "eth0", "mtu", "1400")
    found = pair.examine(code=5)
    (dropped,) = found["reachability"]
    assert f"at {pair.second.address}:6402 (cluster.rendezvous_port): timed out" in dropped["what"]
    assert "authorize-security-group-ingress" in dropped["fix"]
    (mtu,) = found["mtu"]
    assert (mtu["level"], "1500" in mtu["what"], "1400" in mtu["what"]) == ("warning", True, True)


def test_a_running_group_is_examined_and_not_disturbed(pair: Pair) -> None:
    server = pair.serve()
    try:
        found = pair.examine(code=0)
        (reached,) = found["reachability"]
        # Each way: the last rendezvous and two of Ray's; the server's own step and control port.
        assert (reached["level"], reached["what"].split(",")[0]) == ("ok", "8 connections")
        (held,) = {finding["what"] for finding in found["ports"]}
        assert held.startswith("held by the running server, process")
        assert pair.is_ready()
        log = (pair.folder / "serve.log").read_text()
        assert "is over" not in log, log
    finally:
        server.terminate()
        server.wait(60)
