"""A Ray head of our own, as a child process."""

import contextlib
import ipaddress
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rufus_serve.cluster.addresses import free_port
from rufus_serve.cluster.process import end
from rufus_serve.cluster.ray_ports import RayPorts
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.errors import ClusterError
from rufus_serve.parent import die_with_parent

_POLL_S = 0.1
_LOOK_S = 0.5
_START_S = 60.0
_STOP_S = 10.0


class RayHead:
    """`ray start --head`; it ends with us, however we end, and as soon as a part of it ends."""

    def __init__(self, *, address: str, port: int, resources: str, session: RaySession) -> None:
        self._address, self._port, self._session = address, port, session
        self._ports = None if ipaddress.ip_address(address).is_loopback else RayPorts(address)
        self._log = session.folder / "head.log"
        words = ["--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"]
        words += self._port_arguments()
        with self._log.open("wb") as log:
            self._process = session.start(
                ray_command(*words, address=address, resources=resources, session=session),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def _port_arguments(self) -> list[str]:
        if self._ports is None:
            # No flag leaves Ray's client server out, and its port is the same for all by default.
            return [f"--ray-client-server-port={free_port(self._address)}"]
        return self._ports.arguments(head=True)

    @property
    def address(self) -> str:
        """HOST:PORT of its GCS; empty before it is known."""
        if self._port:
            return f"{self._address}:{self._port}"
        # Written after Ray has said that it started.
        with contextlib.suppress(FileNotFoundError):
            return (self._session.ray_folder / "ray_current_cluster").read_text().strip()
        return ""

    def wait_ready(self) -> None:
        """Return once nodes may join.

        Raises:
            ClusterError: it ended or did not come up; with Ray's own last words.
        """
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in self._text() or not self.address:
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = " ".join(self._text().strip().splitlines()[-8:])
                self.stop()
                raise ClusterError(
                    f"Ray's head did not start on {self._address}:{self._port} "
                    f"(cluster.ray_port): {words}"
                )
            time.sleep(_POLL_S)

    def wait(self) -> str:
        """Blocks until it or its raylet has ended; its last words."""
        while (code := self._process.poll()) is None:
            if not self._session.has_raylet():
                return "its raylet is gone"
            time.sleep(_LOOK_S)
        return f"exit code {code}: {' '.join(self._text().strip().splitlines()[-3:])}"

    def stop(self) -> None:
        """End it; may be called twice."""
        end(self._process, deadline_s=_STOP_S)
        if self._ports is not None:
            self._ports.release()

    def _text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def ray_command(*arguments: str, address: str, resources: str, session: RaySession) -> list[str]:
    """`ray start` of this interpreter's own environment, in the foreground."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    return [
        ray, "start", *arguments, f"--node-ip-address={address}", "--block", "--num-cpus=1",
        f"--resources={resources}", "--object-store-memory=80000000", "--disable-usage-stats",
        "--include-log-monitor=false", f"--temp-dir={session.ray_folder}",
    ]  # fmt: skip
