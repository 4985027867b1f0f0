"""`LocalCluster`: followers as plain processes on this host."""

import threading
from pathlib import Path

from rufus_serve.cluster.base import ClusterHealth, FollowerExit, NodeInfo, OnExit
from rufus_serve.cluster.process import AdoptedProcess, FollowerProcess, log_file_in
from rufus_serve.protocol.specs import FollowerSpec


class LocalCluster:
    """`Cluster` without Ray, for one host."""

    def __init__(self, *, slots: int, python: str = "", log_dir: Path | None = None) -> None:
        self._slots = slots
        self._python = python
        self._log_dir = log_dir
        self._running: dict[str, FollowerProcess | AdoptedProcess] = {}
        self._lock = threading.Lock()
        self._on_exit: OnExit = lambda _: None
        self._released = False

    @property
    def health(self) -> ClusterHealth:
        """Nothing here can fail."""
        return ClusterHealth()

    def start(self, on_exit: OnExit) -> tuple[NodeInfo, ...]:
        """Nothing to bring up."""
        self._on_exit = on_exit
        return self.make_room(self._slots)

    def launch(self, spec: FollowerSpec) -> None:
        """Start a follower process here."""
        log_file = log_file_in(self._log_dir, spec.follower_id) if self._log_dir else None
        with self._lock:
            self._running[spec.follower_id] = FollowerProcess(
                spec, python=self._python, log_file=log_file, on_exit=self._ended
            )

    def make_room(self, followers: int) -> tuple[NodeInfo, ...]:
        """This host, which takes as many as are wanted."""
        return (NodeInfo(host="localhost", address="127.0.0.1", slots=followers),)

    def kill(self, follower_id: str) -> None:
        """Kill the process if it still runs."""
        with self._lock:
            process = self._running.get(follower_id)
        if process is not None:
            process.kill()

    def adopt(self, follower_id: str, pid: int, address: str) -> None:  # noqa: ARG002
        """Watch a process that an earlier supervisor started here."""
        with self._lock:
            self._running[follower_id] = AdoptedProcess(follower_id, pid, on_exit=self._ended)

    def interrupt(self) -> None:
        """Nothing here waits for a node."""

    def release(self) -> None:
        """Leave running followers alone from now on."""
        self._released = True

    def stop(self) -> None:
        """Kill what still runs."""
        if self._released:
            return
        with self._lock:
            processes = list(self._running.values())
        for process in processes:
            process.kill()

    def _ended(self, news: FollowerExit) -> None:
        with self._lock:
            self._running.pop(news.follower_id, None)
        self._on_exit(news)
