"""Hosts made of network namespaces, joined by a bridge; each has an address of its own."""

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "rufus-serve")


def missing() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if not shutil.which("ip"):
        return "needs iproute2"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """One namespace."""

    def __init__(self, network: "Network", number: int) -> None:
        self.name = f"{network.name}-{number}"
        self.address = f"10.213.77.{number + 1}"
        self._port = f"{network.name}p{number}"
        ip("netns", "add", self.name)
        ip("link", "add", "eth0", "netns", self.name, "type", "veth", "peer", "name", self._port)
        ip("link", "set", self._port, "master", network.name, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(self, *words: str, log: Path) -> "subprocess.Popen[bytes]":
        """Run a command on this host."""
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def fetch(self, url: str, body: str = "") -> str:
        """Status line and body of a request made on this host."""
        words = ["curl", "-s", "-m", "120", "-w", "\\n%{http_code}", url]
        if body:
            words += ["-H", "Content-Type: application/json", "-d", body]
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *words], capture_output=True, text=True, check=False
        )
        return done.stdout

    def set_link(self, state: str) -> None:
        """Plug the cable in (up) or out (down)."""
        ip("link", "set", self._port, state)

    def close(self) -> None:
        """Kill what runs there and remove it."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        for pid in pids.stdout.split():
            subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False)


class Network:
    """A bridge with hosts on it; a context manager."""

    def __init__(self, hosts: int) -> None:
        self.name = f"rs{uuid.uuid4().hex[:6]}"
        ip("link", "add", self.name, "type", "bridge")
        ip("link", "set", self.name, "up")
        self.hosts: list[Host] = []
        try:
            for number in range(hosts):
                self.hosts.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove hosts and bridge."""
        for host in self.hosts:
            host.close()
        subprocess.run(["ip", "link", "del", self.name], check=False)
