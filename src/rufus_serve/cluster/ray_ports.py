"""Fixed ports of Ray's processes, so that a firewall can name them.

Each raylet of an address takes a block of its own: several followers may share a host.
"""

import errno
import socket
import sys

from rufus_serve.config.ports import RAY_PORTS
from rufus_serve.errors import EndpointError

_BLOCK = 40
_SINGLE = (
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
)
_CLIENT_SERVER = len(_SINGLE)
_FIRST_WORKER = _CLIENT_SERVER + 1


class RayPorts:
    """A block of ports, ours until `release` or the end of this process."""

    def __init__(self, address: str) -> None:
        """Claim the first block of `address` that is free.

        Raises:
            EndpointError: none is, or `address` is not this host's.
        """
        for self.first in RAY_PORTS[::_BLOCK]:
            claim = _claim(address, self.first)
            if claim is not None:
                self._claim = claim
                return
        raise EndpointError(
            f"ports {RAY_PORTS.start} to {RAY_PORTS.stop - 1} of {address} are taken by others; "
            f"Ray needs {_BLOCK} of them in a row"
        )

    def arguments(self, *, head: bool) -> list[str]:
        """Of `ray start`."""
        flags = [f"--{name}={self.first + offset}" for offset, name in enumerate(_SINGLE)]
        flags += [
            f"--min-worker-port={self.first + _FIRST_WORKER}",
            f"--max-worker-port={self.first + _BLOCK - 1}",
        ]
        return (
            [*flags, f"--ray-client-server-port={self.first + _CLIENT_SERVER}"] if head else flags
        )

    def release(self) -> None:
        """Leave the block to others; may be called twice."""
        self._claim.close()


def _claim(address: str, first: int) -> socket.socket | None:
    """A socket that holds the block's name on this host, if it and the first port are free."""
    # Linux forgets abstract names with their process, and keeps them apart as it does ports.
    name = f"\0rufus-serve/ray/{address}/{first}" if sys.platform == "linux" else ""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if name:
            claim.bind(name)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, first))
    except OSError as error:
        claim.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise EndpointError(f"cannot listen on {address}:{first}: {error.strerror}") from error
    return claim
