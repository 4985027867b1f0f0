"""Step channel within one process, each side on a thread of its own; for tests and trials.

Messages pass through the codec, so that what works here has crossed the wire's checks, and no
array is shared between the sides.
"""

import itertools
import queue
import sys
import threading
from collections.abc import Sequence

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.inbox import Peer
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.sides import FollowerSide, LeaderSide
from rufus_serve.protocol.codec import decode, encode
from rufus_serve.protocol.messages import Message, StepEndpoint

_Frames = tuple[bytes, ...]


def _copied(message: Message) -> _Frames:
    return tuple(bytes(frame) for frame in encode(message))


class InprocNetwork:
    """Where the channels of one process find each other; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._followers: dict[str, InprocFollowerChannel] = {}

    def add(self, follower: "InprocFollowerChannel") -> str:
        """Make `follower` reachable; its endpoint."""
        with self._lock:
            endpoint = f"inproc://follower-{next(self._numbers)}"
            self._followers[endpoint] = follower
            return endpoint

    def remove(self, endpoint: str) -> None:
        """Make a follower unreachable."""
        with self._lock:
            self._followers.pop(endpoint, None)

    def find(self, endpoint: str) -> "InprocFollowerChannel | None":
        """The follower at `endpoint`, if it is still there."""
        with self._lock:
            return self._followers.get(endpoint)

    def new_peer(self) -> Peer:
        """A name that no other leader's connection has."""
        with self._lock:
            return b"leader-%d" % next(self._numbers)


class _Connection:
    """One connection; the follower puts what it sends into `to_leader`."""

    def __init__(
        self,
        node_rank: int,
        peer: Peer,
        to_leader: "queue.SimpleQueue[tuple[_Connection, _Frames]]",
    ) -> None:
        self.node_rank = node_rank
        self.peer = peer
        self.follower: InprocFollowerChannel | None = None
        self._to_leader = to_leader

    def deliver(self, frames: _Frames) -> None:
        self._to_leader.put((self, frames))

    def hang_up(self) -> None:
        """Tell the leader that the follower is gone: a message of no frames."""
        self._to_leader.put((self, ()))


class InprocLeaderChannel(LeaderSide):
    """`LeaderChannel` to followers of the same process."""

    def __init__(self, network: InprocNetwork, info: HelloInfo, keys: GroupKeys) -> None:
        super().__init__(info)
        self._network = network
        self._keys = keys
        self._connections: list[_Connection] = []
        self._received: queue.SimpleQueue[tuple[_Connection, _Frames]] = queue.SimpleQueue()

    def close(self) -> None:
        """Hang up; may be called twice, from any thread."""
        self.abandon(sys.maxsize, "the channel is closed")
        self._drop()

    def _open(self, endpoints: Sequence[StepEndpoint]) -> None:
        self._received = queue.SimpleQueue()
        for endpoint in endpoints:
            connection = _Connection(endpoint.node_rank, self._network.new_peer(), self._received)
            connection.follower = self._network.find(endpoint.endpoint)
            self._connections.append(connection)
            if connection.follower is not None and not connection.follower.admit(
                connection, self._keys
            ):
                self._ledger.refuse(connection.node_rank, "it was started with another token")

    def _drop(self) -> None:
        while self._connections:
            connection = self._connections.pop()
            if connection.follower is not None:
                connection.follower.dismiss(connection)

    def _send(self, message: Message) -> None:
        frames = _copied(message)
        for connection in self._connections:
            if connection.follower is not None:
                connection.follower.deliver(connection.peer, frames)

    def _pump(self, timeout_s: float) -> None:
        try:
            connection, frames = self._received.get(timeout=timeout_s)
        except queue.Empty:
            return
        while True:
            if frames:
                self._ledger.take(connection.node_rank, decode(frames))
            else:
                self._ledger.lose(connection.node_rank, "connection closed")
            try:
                connection, frames = self._received.get_nowait()
            except queue.Empty:
                return


class InprocFollowerChannel(FollowerSide):
    """`FollowerChannel` for leaders of the same process."""

    def __init__(
        self,
        network: InprocNetwork,
        info: HelloInfo,
        keys: GroupKeys,
        *,
        node_rank: int,
        host: str = "localhost",
    ) -> None:
        super().__init__(info, node_rank)
        self._network = network
        self._keys = keys
        self._lock = threading.Lock()
        self._connections: dict[Peer, _Connection] = {}
        self._received: queue.SimpleQueue[tuple[Peer, _Frames]] = queue.SimpleQueue()
        self._endpoint = StepEndpoint(node_rank=node_rank, host=host, endpoint=network.add(self))

    @property
    def endpoint(self) -> StepEndpoint:
        """Where this follower awaits its leader."""
        return self._endpoint

    def close(self) -> None:
        """Hang up; may be called twice, from any thread."""
        self._network.remove(self._endpoint.endpoint)
        self._hang_up()

    def disconnect(self) -> None:
        """Break all connections, as a network failure would; a leader may connect again."""
        self._hang_up()
        self._inbox.forget_leader()

    def admit(self, connection: _Connection, keys: GroupKeys) -> bool:
        """Take a leader's connection; False if its keys are another group's. Any thread."""
        if keys != self._keys:
            return False
        with self._lock:
            self._connections[connection.peer] = connection
        return True

    def dismiss(self, connection: _Connection) -> None:
        """Forget a leader's connection; any thread."""
        with self._lock:
            self._connections.pop(connection.peer, None)

    def deliver(self, peer: Peer, frames: _Frames) -> None:
        """Queue what a leader sends; any thread. Nothing happens if it is not connected."""
        with self._lock:
            if peer in self._connections:
                self._received.put((peer, frames))

    def _hang_up(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.hang_up()
            self._connections.clear()

    def _send(self, peer: Peer, message: Message) -> None:
        with self._lock:
            connection = self._connections.get(peer)
        if connection is not None:
            connection.deliver(_copied(message))

    def _pump(self, timeout_s: float) -> bool:
        try:
            peer, frames = self._received.get(timeout=timeout_s)
        except queue.Empty:
            return False
        answer = self._inbox.take(peer, decode(frames))
        if answer is not None:
            self._send(peer, answer)
        return True
