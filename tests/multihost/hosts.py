"""Hosts made of network namespaces, joined by a bridge; each has an address of its own."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.server import ROOT
from tests.multihost.bad_cable import send_plain_frames

PROGRAM = str(Path(sys.executable).parent / "rufus-serve")
_CLONE_NEWNET = 0x40000000
_OUTSIDE = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""The namespace that the tests were started in."""


def missing() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if not shutil.which("ip"):
        return "needs iproute2"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    return ""


NEEDED = pytest.mark.skipif(bool(missing()), reason=missing())
"""Mark of what takes hosts."""


def ip(*words: str) -> None:
    """Run it where the bridge is, whatever host this thread is on."""
    subprocess.run(
        ["ip", *words],
        check=True,
        capture_output=True,
        preexec_fn=lambda: _set_namespace(_OUTSIDE),
    )


class Host:
    """One namespace."""

    def __init__(self, network: "Network", number: int) -> None:
        self.name = f"{network.name}-{number}"
        self.address = f"10.213.77.{number + 1}"
        self._port = f"{network.name}p{number}"
        self._network = network
        self._cable: subprocess.Popen[bytes] | None = None
        ip("netns", "add", self.name)
        ip("link", "add", "eth0", "netns", self.name, "type", "veth", "peer", "name", self._port)
        ip("link", "set", self._port, "master", network.name, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(
        self, *words: str, log: Path, environ: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Run a command on this host."""
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | (environ or {}),
                start_new_session=True,
            )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this host: this thread, and the threads and processes it starts."""
        with Path("/proc/thread-self/ns/net").open() as before:
            _enter(f"/run/netns/{self.name}")
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def has(self, pid: int) -> bool:
        """Whether the process runs on this host."""
        there, here = Path(f"/proc/{pid}/ns/net"), Path(f"/run/netns/{self.name}")
        return there.stat().st_ino == here.stat().st_ino

    def run(self, *words: str) -> str:
        """What a command prints on this host."""
        command = ["ip", "netns", "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def listeners(self) -> list[str]:
        """ADDRESS:PORT of all that listens to TCP here."""
        return [line.split()[3] for line in self.run("ss", "-ltnH").splitlines()]

    def set_link(self, state: str) -> None:
        """Plug the cable in (up) or out (down)."""
        ip("link", "set", self._port, state)

    def move(self, address: str) -> None:
        """Give the host another address, as a new lease would."""
        ip("-n", self.name, "addr", "del", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "addr", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    def impair(self, *, delay_ms: float, loss: float) -> None:
        """Delay and lose what this host sends and is sent, by the kernel if it can."""
        done = subprocess.run(
            ["tc", "-n", self.name, "qdisc", "add", "dev", "eth0", "root", "netem",
             "delay", f"{2 * delay_ms}ms", "loss", f"{200 * loss}%"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return
        inner, outer = f"{self._port}i", f"{self._port}o"
        for host in self._network.hosts:
            with host.entered():
                send_plain_frames("eth0")
        ip("link", "add", inner, "type", "veth", "peer", "name", outer)
        ip("link", "set", self._port, "nomaster")
        ip("link", "set", inner, "up")
        ip("link", "set", outer, "master", self._network.name, "up")
        words = (self._port, inner, str(delay_ms / 1000), str(loss))
        self._cable = subprocess.Popen(
            [sys.executable, "-m", "tests.multihost.bad_cable", *words], cwd=ROOT
        )

    def close(self) -> None:
        """Kill what runs there and remove it."""
        if self._cable is not None:
            self._cable.kill()
            self._cable.wait()
            ip("link", "del", f"{self._port}i")
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        for pid in pids.stdout.split():
            if int(pid) != os.getpid():
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
            for _ in range(hosts):
                self.add_host()
        except BaseException:
            self.close()
            raise

    def add_host(self) -> Host:
        """A host more."""
        self.hosts.append(Host(self, len(self.hosts)))
        return self.hosts[-1]

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove hosts and bridge."""
        for host in self.hosts:
            host.close()
        subprocess.run(["ip", "link", "del", self.name], check=False)


def _enter(path: str) -> None:
    with Path(path).open() as namespace:
        _set_namespace(namespace.fileno())


def _set_namespace(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
