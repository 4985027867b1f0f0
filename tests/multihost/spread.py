"""A server on the first of several hosts, whose other hosts offer themselves."""

import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.server import _TAG, DEMO_MODEL, Server
from tests.multihost.hosts import PROGRAM, Host, Network

RAY_PORT = 6379


def write_token(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


class SpreadServer(Server):
    """`rufus-serve serve` on the first host; make it while you are on that host."""

    def __init__(
        self,
        network: Network,
        model: Path,
        *flags: str,
        token: Path,
        ray_port: int = RAY_PORT,
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.network, self.token, self.ray_port = network, token, ray_port
        self.offers: dict[str, subprocess.Popen[bytes]] = {}
        super().__init__(
            model, "--cluster.interface=eth0", f"--cluster.token-file={token}",
            f"--cluster.ray-port={ray_port}",
            # The hosts share this machine's cores.
            "--cpu.threads=1", *flags, environ=environ, cwd=cwd,
        )  # fmt: skip

    def offer(
        self,
        host: Host,
        *flags: str,
        program: str = PROGRAM,
        environ: dict[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Run `rufus-serve follower` on `host`."""
        self.offers[host.name] = offered = offer(
            host, *flags, leader=f"{self.network.hosts[0].address}:{self.ray_port}",
            token=self.token,
            log=self.offer_log(host), program=program,
            environ={_TAG: self.tag, "TMPDIR": str(self.temporary)} | (environ or {}),
        )  # fmt: skip
        return offered

    def offer_log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def withdraw(self, host: Host) -> int:
        """End the offer of `host`; its exit code."""
        offered = self.offers.pop(host.name)
        offered.terminate()
        return offered.wait(30)

    def end_offers(self) -> None:
        for offered in self.offers.values():
            offered.terminate()
        for offered in self.offers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                offered.wait(15)

    def remove(self) -> None:
        self.end_offers()
        super().remove()


def offer(
    host: Host,
    *flags: str,
    leader: str,
    token: Path,
    log: Path,
    program: str = PROGRAM,
    environ: dict[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    words = (program, "follower", f"--leader={leader}", f"--token-file={token}", *flags)
    return host.start(*words, log=log, environ=environ)


@contextlib.contextmanager
def on_hosts(
    network: Network, folder: Path, *flags: str, model: Path = DEMO_MODEL
) -> Iterator[SpreadServer]:
    """A ready server with a follower on each host, for the length of the block."""
    with network.hosts[0].entered():
        server = SpreadServer(
            network, model, f"--nodes={len(network.hosts)}", *flags, token=write_token(folder / "t")
        )
        try:
            for host in network.hosts[1:]:
                server.offer(host)
            server.wait_ready()
            yield server
            assert server.stop() == 0
        finally:
            server.remove()


def wait_until(
    happened: Callable[[], object], log: Callable[[], str], *, deadline_s: float = 60.0
) -> None:
    give_up = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < give_up, log()
        time.sleep(0.1)
