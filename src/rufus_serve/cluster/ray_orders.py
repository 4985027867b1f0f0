"""What the supervisor and its Ray child say to each other, and how: JSON lines on a socket pair.

The socket closes with either process: the child ends with its supervisor, however that ends.
"""

import contextlib
import socket
import threading

import msgspec

from rufus_serve.cluster.base import FollowerExit, NodeInfo
from rufus_serve.protocol.specs import FollowerSpec

ALIVE_S = 1.0


class RaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the Ray child needs of the configuration."""

    followers: int
    """Followers to find room for, stand-bys included."""
    spread: bool
    """Whether followers join from other hosts, one per Ray node; else all run here."""
    address: str
    """This host's address."""
    port: int
    """Port of the Ray head; 0 for a free one."""
    existing: str
    """Address of a running Ray cluster to join; empty to start one here."""
    join_s: float
    python: str
    log_dir: str
    """Of followers on this host; empty for one of the agent's own."""
    local_slots: int
    """Followers that this host may run."""
    keep_logs: bool = False
    """Leave Ray's session folder."""
    log_level: str = "INFO"


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Of the supervisor."""


class Join(Order, frozen=True):
    """The first order: start or join Ray; answered by `Came` or `CannotJoin`."""

    settings: RaySettings
    folder: str
    """Where Ray keeps its session."""
    again: bool
    """Followers may run already: do not wait for room for all of them."""


class Launch(Order, frozen=True):
    """Start a follower; answered by `Launched` or `NotLaunched`."""

    spec: FollowerSpec


class Adopt(Order, frozen=True):
    """Watch a follower that runs."""

    follower_id: str
    pid: int
    address: str


class Kill(Order, frozen=True):
    """Kill a follower, and hold its place no longer."""

    follower_id: str


class Survey(Order, frozen=True):
    """Tell which nodes there are; answered by `Surveyed`."""


class News(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Of the Ray child."""


class Came(News, frozen=True):
    """Ray is there, with these nodes."""

    nodes: tuple[NodeInfo, ...]


class Surveyed(News, frozen=True):
    """One entry for each follower that could run, those that do included."""

    nodes: tuple[NodeInfo, ...]


class CannotJoin(News, frozen=True):
    """Ray cannot be started or joined, or has ended; so does the child."""

    reason: str
    exit_code: int
    may_pass: bool
    """Whether another try may do better."""


class Launched(News, frozen=True):
    """A follower's process runs."""

    follower_id: str
    pid: int
    address: str


class NotLaunched(News, frozen=True):
    """A follower cannot be started."""

    follower_id: str
    reason: str
    exit_code: int


class Ended(News, frozen=True):
    """A follower's process ended."""

    exit: FollowerExit


class Alive(News, frozen=True):
    """The child still runs; said every `ALIVE_S` seconds."""


class Unwatched(News, frozen=True):
    """A follower's agent is gone; it is not told of its end before another one is there."""

    follower_id: str
    reason: str


AnyOrder = Join | Launch | Adopt | Kill | Survey
AnyNews = Alive | Came | Surveyed | CannotJoin | Launched | NotLaunched | Ended | Unwatched


class Wire:
    """One end of the conversation; all but `send` and `hang_up` on one thread."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lines = end.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Order | News) -> None:
        """Send `message`; nothing happens if nobody is there any more, which the reader is told."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(msgspec.json.encode(message) + b"\n")

    def next_order(self) -> AnyOrder | None:
        """The supervisor's next order; None once it is gone."""
        line = self._next_line()
        return msgspec.json.decode(line, type=AnyOrder) if line else None

    def next_news(self) -> AnyNews | None:
        """The child's next news; None once it is gone."""
        line = self._next_line()
        return msgspec.json.decode(line, type=AnyNews) if line else None

    def hang_up(self) -> None:
        """Have both ends read that the conversation is over; any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the socket; on the thread that reads."""
        self._lines.close()
        self._socket.close()

    def _next_line(self) -> bytes:
        try:
            line = self._lines.readline()
        except (OSError, ValueError):
            return b""
        return line if line.endswith(b"\n") else b""
