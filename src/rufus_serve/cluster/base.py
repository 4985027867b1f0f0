"""`Cluster`: where follower processes come from and how their end is noticed."""

import signal
from collections.abc import Callable
from typing import Protocol

import msgspec

from rufus_serve.protocol.specs import FollowerSpec

LOG_TAIL_LINES = 40
_LAST_LINES = 10


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A host that may run followers."""

    host: str
    address: str
    slots: int
    """Followers it may run side by side."""


class FollowerExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a follower process ended."""

    follower_id: str
    code: int
    """Exit code; negative for a signal, as subprocess tells it."""
    cause: str = ""
    """Why it ended, by its own word or that of what ran it; empty if neither could tell."""
    log_tail: str = ""
    """Its last log lines."""

    @property
    def reason(self) -> str:
        """One line for people."""
        how = f"killed by signal {-self.code}" if self.code < 0 else f"exited with {self.code}"
        if self.cause:
            return f"{how}: {self.cause}"
        # What an interpreter that cannot start, or a crash in native code, leaves behind.
        own_end = self.code not in (0, -signal.SIGKILL, -signal.SIGTERM)
        return f"{how}: {self.log_tail.splitlines()[-1]}" if own_end and self.log_tail else how

    @property
    def last_words(self) -> str:
        """Its end and its last log lines."""
        lines = self.log_tail.splitlines()[-_LAST_LINES:]
        wrote = "\n  ".join(["; it wrote last:", *lines]) if lines else ""
        return f"the first follower that failed was {self.follower_id}, {self.reason}{wrote}"


class ClusterHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether followers can be started at the moment; those that run need nothing of it."""

    up: bool = True
    restarts: int = 0
    """How often what starts them had to be started again itself."""
    detail: str = ""
    """Why it is not there."""


OnExit = Callable[[FollowerExit], None]
"""Called once per follower process, on any thread."""


class Cluster(Protocol):
    """Starts, watches and kills follower processes; on any thread. Calls may block.

    What it is made of may fail at any time: followers go on, and calls wait until it is back.
    """

    @property
    def health(self) -> ClusterHealth:
        """How it is now."""

    def start(self, on_exit: OnExit) -> tuple[NodeInfo, ...]:
        """Bring the cluster up and wait for enough nodes.

        Raises:
            ClusterError: too few nodes came; says which did and what is missing.
        """

    def launch(self, spec: FollowerSpec) -> None:
        """Start a follower process on a free slot; its end is told through `on_exit`.

        Raises:
            ClusterError: no node can take it, or it was killed meanwhile.
        """

    def make_room(self, followers: int) -> tuple[NodeInfo, ...]:
        """Nodes for so many followers in all, those that run included.

        Raises:
            ClusterError: there are not enough.
        """

    def kill(self, follower_id: str) -> None:
        """Kill the process if it still runs (SIGKILL: it may hang in a collective)."""

    def adopt(self, follower_id: str, pid: int, address: str) -> None:
        """Take over a follower that an earlier supervisor started; its end is told as well."""

    def interrupt(self) -> None:
        """Have calls that wait give up with `ClusterError`."""

    def release(self) -> None:
        """Leave running followers alone when this process ends; they wait for another leader."""

    def stop(self) -> None:
        """Kill what still runs and take the cluster down; may be called twice."""
