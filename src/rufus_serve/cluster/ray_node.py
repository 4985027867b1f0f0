"""`rufus-serve follower`: offers this host to a leader's Ray cluster and waits."""

import logging
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import FrameType

from rufus_serve.channel.keys import read_token
from rufus_serve.cluster.addresses import choose_address
from rufus_serve.cluster.ray_agent import ADDRESS_VARIABLE, RESOURCE, TOKEN_VARIABLE
from rufus_serve.cluster.ray_head import die_with_parent, ray_command
from rufus_serve.cluster.ray_token import ray_environment
from rufus_serve.errors import ClusterError, ConfigError, LeaderLost

_log = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 15.0


def run_node(*, leader: str, token_file: Path | None, address: str) -> int:
    """Join the Ray head at `leader`, again whenever it comes back, until told to stop.

    Raises:
        ConfigError: there is no token file.
    """
    if token_file is None:
        raise ConfigError("a follower on its own host needs --token-file, the leader's token")
    token = read_token(token_file)
    host, _, port = leader.rpartition(":")
    node = _RayNode(host=host, port=int(port), token_file=token_file, token=token)
    return node.run(address)


class _RayNode:
    """One raylet, restarted with backoff."""

    def __init__(self, *, host: str, port: int, token_file: Path, token: str) -> None:
        self._host, self._port = host, port
        self._token_file, self._token = token_file, token
        self._raylet: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def run(self, address: str) -> int:
        """Blocks until SIGTERM or SIGINT; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopping:
            if not self._reachable():
                _log.info("waiting for the leader at %s:%d", self._host, self._port)
                time.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
                continue
            backoff_s = _FIRST_BACKOFF_S
            self._join(choose_address(interface=address, towards=self._host))
        return 0

    def _reachable(self) -> bool:
        try:
            with socket.create_connection((self._host, self._port), timeout=2.0):
                return True
        except OSError:
            return False

    def _join(self, address: str) -> None:
        _log.info("joining %s:%d as %s", self._host, self._port, address)
        started = time.monotonic()
        self._raylet = subprocess.Popen(
            ray_command(
                f"--address={self._host}:{self._port}",
                address=address,
                resources=f'{{"{RESOURCE}": 1}}',
            ),
            env=self._environ(address),
            preexec_fn=die_with_parent,  # noqa: PLW1509 - only prctl is called there
        )
        code = self._raylet.wait()
        if self._stopping:
            return
        if time.monotonic() - started < 10.0 and code:
            raise ClusterError(
                f"ray start --address={self._host}:{self._port} failed with {code}; its own "
                "message is above (a wrong token, or another Ray or Python version)"
            )
        _log.warning("%s", LeaderLost(f"the leader's Ray head ended (raylet exit code {code})"))

    def _environ(self, address: str) -> dict[str, str]:
        return os.environ | {
            **ray_environment(self._token),
            TOKEN_VARIABLE: str(self._token_file.resolve()),
            ADDRESS_VARIABLE: address,
        }

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._raylet is not None and self._raylet.poll() is None:
            self._raylet.terminate()
