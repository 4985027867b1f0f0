"""`FollowerAgent`: the Ray actor that starts one node's follower and tells of its end.

The follower does not need it: if the agent dies, another one watches the same process.
"""

import os
import queue
import tempfile
from pathlib import Path

import msgspec
import psutil
import ray

from rufus_serve.channel.keys import read_token
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.cluster.process import AdoptedProcess, FollowerProcess, log_file_in
from rufus_serve.protocol.specs import FollowerSpec

TOKEN_VARIABLE = "RUFUS_NODE_TOKEN_FILE"  # noqa: S105 - a variable's name
"""Set by `rufus-serve follower` for the agents on its host: where the shared token is."""
ADDRESS_VARIABLE = "RUFUS_NODE_ADDRESS"
"""Set likewise: the address that the host's owner chose."""
FOLDER_VARIABLE = "RUFUS_NODE_FOLDER"
"""Set likewise: a private folder for followers' logs."""


class FollowerAgent:
    """Starts, watches and kills one follower at a time."""

    def __init__(self, log_dir: str) -> None:
        self._log_dir = Path(os.environ.get(FOLDER_VARIABLE) or log_dir or _own_folder())
        self._log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._process: FollowerProcess | AdoptedProcess | None = None
        self._exits: queue.Queue[FollowerExit] = queue.Queue()
        if "OMP_NUM_THREADS" not in psutil.Process().environ():
            # Ray has put a 1 there for this process, which followers would inherit.
            os.environ.pop("OMP_NUM_THREADS", None)

    def ready(self) -> None:
        """Answers once the actor runs."""

    def launch(self, encoded: bytes, python: str) -> int:
        """Start the follower of the encoded `FollowerSpec`; its pid."""
        spec = msgspec.json.decode(encoded, type=FollowerSpec)
        if not spec.token:
            token = read_token(os.environ[TOKEN_VARIABLE])
            spec = msgspec.structs.replace(spec, token=token)
        self._process = FollowerProcess(
            spec, python=python, log_file=self._log_file(spec.follower_id), on_exit=self._exits.put
        )
        return self._process.pid

    def adopt(self, follower_id: str, pid: int) -> None:
        """Watch a follower on this host that an earlier agent started."""
        self._process = AdoptedProcess(
            follower_id, pid, log_file=self._log_file(follower_id), on_exit=self._exits.put
        )

    def wait_exit(self) -> bytes:
        """Blocks until the follower ends; its `FollowerExit`, encoded."""
        return msgspec.json.encode(self._exits.get())

    def kill(self) -> None:
        """Kill the follower if it still runs."""
        if self._process is not None:
            self._process.kill()

    def _log_file(self, follower_id: str) -> Path:
        return log_file_in(self._log_dir, follower_id)


def _own_folder() -> str:
    """Of a node that nobody made one for: in a Ray cluster that runs already."""
    return tempfile.mkdtemp(prefix="rufus-serve-")


RemoteFollowerAgent = ray.remote(max_restarts=0, max_concurrency=4, num_cpus=0)(FollowerAgent)
