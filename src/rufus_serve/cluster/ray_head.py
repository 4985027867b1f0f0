"""A Ray head on a fixed port, for groups whose followers join from other hosts."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from rufus_serve.cluster.process import end
from rufus_serve.cluster.ray_ports import RayPorts
from rufus_serve.errors import ClusterError

_POLL_S = 0.1
_START_S = 60.0
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


class RayHead:
    """`ray start --head` as a child process; it ends with us, however we end."""

    def __init__(self, *, address: str, port: int, resources: str) -> None:
        self._address, self._port = address, port
        self._ports = RayPorts(address)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            ray_command("--head", f"--port={port}", "--include-dashboard=false", "--no-monitor",
                        *self._ports.arguments(head=True), address=address, resources=resources),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - only prctl is called there
        )  # fmt: skip

    def wait_ready(self) -> None:
        """Return once nodes may join, and find our versions there.

        Raises:
            ClusterError: it ended or did not come up; with Ray's own last words.
        """
        deadline = time.monotonic() + _START_S
        while b"Ray runtime started" not in self._text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._text().decode(errors="replace").strip().splitlines()[-8:]
                self.stop()
                raise ClusterError(
                    f"Ray's head did not start on {self._address}:{self._port} "
                    f"(cluster.ray_port): {' '.join(tail)}"
                )
            time.sleep(_POLL_S)
        from rufus_serve.cluster.ray_greeting import announce

        announce(f"{self._address}:{self._port}")

    def stop(self) -> None:
        """End it; may be called twice."""
        end(self._process, deadline_s=_STOP_S)
        self._output.close()
        self._ports.release()

    def _text(self) -> bytes:
        self._output.seek(0)
        return self._output.read()


def ray_command(*arguments: str, address: str, resources: str) -> list[str]:
    """`ray start` of this interpreter's own environment, in the foreground."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    return [
        ray, "start", *arguments, f"--node-ip-address={address}", "--block", "--num-cpus=1",
        f"--resources={resources}", "--object-store-memory=80000000", "--disable-usage-stats",
    ]  # fmt: skip


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux); runs after fork."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
