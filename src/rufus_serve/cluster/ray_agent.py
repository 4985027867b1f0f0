"""`FollowerAgent`: the Ray actor that runs one node's follower process and tells of its end."""

import os
import queue
import socket
import sys
import tempfile
from pathlib import Path

import msgspec
import ray

from rufus_serve.channel.keys import read_token
from rufus_serve.cluster.addresses import choose_address
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.cluster.process import FollowerProcess
from rufus_serve.protocol.specs import FollowerSpec

TOKEN_VARIABLE = "RUFUS_NODE_TOKEN_FILE"  # noqa: S105 - a variable's name
"""Set by `rufus-serve follower` for the agents on its host: where the shared token is."""
ADDRESS_VARIABLE = "RUFUS_NODE_ADDRESS"
"""Set likewise: the address that the host's owner chose."""
RESOURCE = "rufus_follower"
"""Ray resource that a node has once per follower it may run."""


class FollowerAgent:
    """Owns the follower process of one placement-group bundle."""

    def __init__(self, log_dir: str) -> None:
        elsewhere = not log_dir or TOKEN_VARIABLE in os.environ
        self._log_dir = Path(tempfile.gettempdir()) / "rufus-serve" if elsewhere else Path(log_dir)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._process: FollowerProcess | None = None
        self._exits: queue.Queue[FollowerExit] = queue.Queue()

    def describe(self, towards: str) -> tuple[str, str, str]:
        """Host name, the address that reaches `towards`, Python version."""
        address = os.environ.get(ADDRESS_VARIABLE) or choose_address(towards=towards)
        return socket.gethostname(), address, sys.version.split()[0]

    def launch(self, encoded: bytes, python: str) -> int:
        """Start the follower of the encoded `FollowerSpec`; its pid."""
        spec = msgspec.json.decode(encoded, type=FollowerSpec)
        if not spec.token:
            token = read_token(os.environ[TOKEN_VARIABLE])
            spec = msgspec.structs.replace(spec, token=token)
        log_file = self._log_dir / f"follower-{spec.follower_id}.log"
        self._process = FollowerProcess(
            spec, python=python, log_file=log_file, on_exit=self._exits.put
        )
        return self._process.pid

    def wait_exit(self) -> bytes:
        """Blocks until the follower ends; its `FollowerExit`, encoded."""
        return msgspec.json.encode(self._exits.get())

    def kill(self) -> None:
        """Kill the follower if it still runs."""
        if self._process is not None:
            self._process.kill()


RemoteFollowerAgent = ray.remote(max_restarts=0, max_concurrency=4, num_cpus=0)(FollowerAgent)
