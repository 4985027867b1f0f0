"""`rufus-serve doctor --all-nodes` over two hosts: well, behind a firewall, with another MTU."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.losses import status_of
from tests.e2e.server import DEMO_MODEL
from tests.multihost import hosts
from tests.multihost.hosts import PROGRAM, Host, Network
from tests.multihost.spread import on_hosts, write_token

pytestmark = [
    pytest.mark.timeout(300),
    hosts.NEEDED,
]

RAY_PORT = 6390
"""Ray sees the heads of all namespaces' processes, and starts no second one at the same address."""


class Pair:
    """Two hosts, on the second of which a follower waits."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.first, self.second = network.hosts
        self.folder = folder
        self.token = write_token(folder / "token")
        self.follower = self.second.start(
            PROGRAM, "follower", f"--leader={self.first.address}:{RAY_PORT}",
            f"--token-file={self.token}", log=folder / "follower.log",
        )  # fmt: skip

    def examine(self, *, code: int) -> dict[str, list[dict[str, Any]]]:
        """Findings by check, as the doctor on the first host has them."""
        return examine(
            self.first, "--nodes=2", f"--cluster.token-file={self.token}",
            "--cluster.interface=eth0", f"--cluster.state-dir={self.folder}",
            f"--cluster.ray-port={RAY_PORT}", code=code,
        )  # fmt: skip

    def on_second(self, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.second.name, *words], check=True)


def examine(host: Host, *words: str, code: int) -> dict[str, list[dict[str, Any]]]:
    """Findings by check of a doctor over all nodes, run on `host`."""
    done = subprocess.run(
        [
            "ip", "netns", "exec", host.name, PROGRAM, "doctor", str(DEMO_MODEL), "--all-nodes",
            "--json", *words,
        ],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


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


def test_a_running_group_is_examined_and_not_disturbed(tmp_path: Path) -> None:
    flags = ("--max-model-len=512", "--buckets.prefill=64")
    with Network(2) as network, on_hosts(network, tmp_path, *flags) as server:
        words = (
            "--nodes=2", f"--port={server.port}", "--cluster.interface=eth0",
            f"--cluster.token-file={server.token}", *flags,
        )  # fmt: skip
        before = status_of(server)
        found = examine(network.hosts[0], *words, code=0)
        after = status_of(server)
        assert "Paris" in server.ask()
    (reached,) = found["reachability"]
    # Each way: the last rendezvous and two of Ray's; the server's own step and control port.
    assert (reached["level"], reached["what"].split(",")[0]) == ("ok", "8 connections")
    (held,) = {finding["what"] for finding in found["ports"]}
    assert held == f"held by the running server, process {server.process.pid}"
    assert (after.ready, after.epoch, after.restarts) == (True, before.epoch, before.restarts)
