"""Step channel over ZeroMQ: one encrypted DEALER per follower, one ROUTER at each follower."""

import errno
import logging
import select
import sys
import threading
import time
from collections.abc import Sequence

import msgspec
import zmq

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.inbox import Peer
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.reply_memory import ReplyReader, ReplyWriter, TornReply
from rufus_serve.channel.sides import FollowerSide, LeaderSide
from rufus_serve.channel.sockets import (
    ClientGate,
    ConnectionEvent,
    ConnectionMonitor,
    Context,
    bind,
    connect,
    new_socket,
    poll_fd,
    receive_frames,
)
from rufus_serve.errors import EndpointError
from rufus_serve.protocol.codec import CodecError, Frame, decode, encode
from rufus_serve.protocol.messages import (
    AnyMessage,
    MemoryOpened,
    Message,
    ReplyMemory,
    StepEndpoint,
    StepReply,
    StepWelcome,
    StoredReply,
)

_log = logging.getLogger(__name__)

_FLUSH_MS = 500
_WORTH_STORING_BYTES = 4096
_REBIND_S = 2.0
_SEND = int(zmq.NOBLOCK)
_SEND_MORE = _SEND | int(zmq.SNDMORE)


class _Connection:
    """The leader's connection to one follower."""

    def __init__(self, context: Context, endpoint: StepEndpoint, keys: GroupKeys) -> None:
        self.node_rank = endpoint.node_rank
        self.socket = new_socket(context, zmq.DEALER)
        self.monitor = ConnectionMonitor(self.socket)
        self.memory: ReplyReader | None = None
        self.socket_fd = poll_fd(self.socket)
        self.monitor_fd = poll_fd(self.monitor.socket)
        try:
            connect(self.socket, endpoint.endpoint, keys)
        except EndpointError:
            self.close()
            raise

    def close(self) -> None:
        self.monitor.close()
        self.socket.close()
        if self.memory is not None:
            self.memory.close()

    def open_memory(self, welcome: StepWelcome) -> None:
        """Take large replies from the follower's memory from now on, if it can be reached."""
        if welcome.reply_memory is None or self.memory is not None:
            return
        try:
            self.memory = ReplyReader(welcome.reply_memory)
        except EndpointError as error:
            _log.info("follower %d sends all replies by socket: %s", self.node_rank, error)
            return
        for frame in encode(MemoryOpened(epoch=welcome.epoch)):
            self.socket.send(frame, _SEND)

    def resolve(self, message: AnyMessage) -> AnyMessage:
        """The reply that a note stands for; any other message as it is.

        Raises:
            CodecError, TornReply: what lies in the memory is no such reply.
        """
        if not isinstance(message, StoredReply):
            return message
        if self.memory is None:
            raise TornReply("a note of a reply in memory that was never opened")
        return decode(self.memory.take(message))


class ZmqLeaderChannel(LeaderSide):
    """`LeaderChannel` over ZeroMQ; sockets are touched only under `_lock`."""

    def __init__(self, info: HelloInfo, keys: GroupKeys) -> None:
        super().__init__(info)
        self._keys = keys
        self._context: Context = zmq.Context()
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._connection_of_fd: dict[int, _Connection] = {}
        self._poll = select.poll()

    def close(self) -> None:
        """Close the sockets; may be called twice, from any thread."""
        self.abandon(sys.maxsize, "the channel is closed")
        self._drop()
        self._context.term()

    def _open(self, endpoints: Sequence[StepEndpoint]) -> None:
        with self._lock:
            for endpoint in endpoints:
                self._connections.append(_Connection(self._context, endpoint, self._keys))
            self._watch()

    def _drop(self) -> None:
        with self._lock:
            while self._connections:
                self._connections.pop().close()
            self._watch()

    def _watch(self) -> None:
        """Poll descriptors, not sockets, so that waiting needs no lock."""
        self._poll = select.poll()
        self._connection_of_fd = {}
        for connection in self._connections:
            for fd in (connection.socket_fd, connection.monitor_fd):
                self._connection_of_fd[fd] = connection
                self._poll.register(fd, select.POLLIN)

    def _send(self, message: Message) -> None:
        # Copied once and then shared: small frames are cheaper so, and the caller may reuse
        # its arrays.
        *more, last = [zmq.Frame(frame, copy=True) for frame in encode(message)]
        with self._lock:
            for connection in self._connections:
                for frame in more:
                    connection.socket.send(frame, _SEND_MORE, copy=False)
                connection.socket.send(last, _SEND, copy=False)

    def _pump(self, timeout_s: float) -> None:
        signalled = self._poll.poll(timeout_s * 1000) if timeout_s else []
        with self._lock:
            if not signalled:
                # A send may have swallowed the signal, so look at every socket now and then.
                self._sweep(events_too=timeout_s > 0)
            for fd, _ in signalled:
                connection = self._connection_of_fd.get(fd)
                if connection is not None and fd == connection.monitor_fd:
                    self._take_events(connection)
                elif connection is not None:
                    self._receive(connection)

    def _sweep(self, *, events_too: bool) -> None:
        for connection in list(self._connections):
            if events_too:
                self._take_events(connection)
            else:
                self._receive(connection)

    def _receive(self, connection: _Connection) -> None:
        while (frames := receive_frames(connection.socket)) is not None:
            try:
                message = connection.resolve(decode(frames))
            except (CodecError, TornReply) as error:
                self._ledger.lose(connection.node_rank, f"sent a malformed message: {error}")
                continue
            if isinstance(message, StepWelcome):
                connection.open_memory(message)
            self._ledger.take(connection.node_rank, message)

    def _take_events(self, connection: _Connection) -> None:
        events: list[ConnectionEvent] = []
        connection.monitor.drain(events.append)
        # What a follower sent before it hung up is in the socket by now.
        self._receive(connection)
        if ConnectionEvent.REFUSED in events:
            self._ledger.refuse(connection.node_rank, "it was started with another token")
        if ConnectionEvent.DOWN in events:
            self._ledger.lose(connection.node_rank, "connection closed")
            # libzmq would connect again, and hand this epoch's queue to whoever answers.
            self._connections.remove(connection)
            connection.close()
            self._watch()


class ZmqFollowerChannel(FollowerSide):
    """`FollowerChannel` over ZeroMQ; the socket is touched only under `_lock`."""

    def __init__(
        self,
        info: HelloInfo,
        keys: GroupKeys,
        *,
        node_rank: int,
        host: str,
        address: str,
        port: int,
        share_memory: bool = True,
    ) -> None:
        """Listen at `address`:`port`, 0 for a free port.

        Raises:
            EndpointError: the address cannot be used.
        """
        super().__init__(info, node_rank)
        self._keys = keys
        self._node_rank = node_rank
        self._may_share_memory = share_memory
        self._memory: ReplyWriter | None = None
        self._memory_peer: Peer | None = None
        """The leader that reads `_memory`; None until one says that it opened it."""
        self._context: Context = zmq.Context()
        self._gate = ClientGate(self._context, keys)
        self._lock = threading.Lock()
        self._closed = False
        literal = f"[{address}]" if ":" in address else address
        try:
            endpoint = self._listen(f"tcp://{literal}:{port}")
        except EndpointError:
            self.close()
            raise
        self._endpoint = StepEndpoint(
            node_rank=node_rank,
            host=host,
            endpoint=endpoint,
        )

    @property
    def endpoint(self) -> StepEndpoint:
        """Where this follower awaits its leader."""
        return self._endpoint

    def close(self) -> None:
        """Close the socket, after at most half a second for queued replies; any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._poll = select.poll()
            self._socket.close(linger=_FLUSH_MS)
            self._renew_memory(None)
        self._context.term()
        self._gate.join()

    def disconnect(self) -> None:
        """Break all connections, as a network failure would; a leader may connect again."""
        with self._lock:
            self._socket.close(linger=0)
            self._inbox.forget_leader()
            deadline = time.monotonic() + _REBIND_S
            while True:
                try:
                    self._listen(self._endpoint.endpoint)
                    return
                except EndpointError:  # noqa: PERF203
                    # The old listener is closed by libzmq's thread, in its own time.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

    def _listen(self, endpoint: str) -> str:
        self._socket = new_socket(self._context, zmq.ROUTER)
        self._socket.router_mandatory = True
        try:
            actual = bind(self._socket, endpoint, self._keys)
        except EndpointError:
            self._socket.close()
            raise
        self._poll = select.poll()
        self._poll.register(poll_fd(self._socket), select.POLLIN)
        return actual

    def _send(self, peer: Peer, message: Message) -> None:
        with self._lock:
            if self._closed:
                return
            *more, last = self._frames_for(peer, message)
            try:
                self._socket.send(peer, _SEND_MORE)
                for frame in more:
                    self._socket.send(frame, _SEND_MORE)
                self._socket.send(last, _SEND)
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                _log.info("%s not sent: its leader is gone", type(message).__name__)

    def _frames_for(self, peer: Peer, message: Message) -> list[Frame]:
        if isinstance(message, StepWelcome) and not message.refused:
            message = msgspec.structs.replace(message, reply_memory=self._offer())
        frames = encode(message)
        is_read = self._memory is not None and peer == self._memory_peer
        if is_read and isinstance(message, StepReply) and _size(frames) > _WORTH_STORING_BYTES:
            assert self._memory is not None
            note = self._memory.put(frames, epoch=message.epoch)
            # With no room, the leader being behind, it goes by socket.
            return frames if note is None else encode(note)
        return frames

    def _offer(self) -> ReplyMemory | None:
        """Fresh memory for a leader that shakes hands; node rank 0 alone has large replies."""
        if self._node_rank != 0 or not self._may_share_memory:
            return None
        try:
            self._renew_memory(ReplyWriter(checksums=_log.isEnabledFor(logging.DEBUG)))
        except OSError as error:
            _log.info("all replies go by socket: %s", error.strerror)
            self._may_share_memory = False
        return None if self._memory is None else self._memory.offer()

    def _renew_memory(self, memory: ReplyWriter | None) -> None:
        old, self._memory, self._memory_peer = self._memory, memory, None
        if old is not None:
            old.close()

    def _pump(self, timeout_s: float) -> bool:
        if timeout_s:
            self._poll.poll(timeout_s * 1000)
        with self._lock:
            received = None if self._closed else receive_frames(self._socket)
        if received is None:
            return False
        peer = received[0].tobytes()
        try:
            message = decode(received[1:])
        except CodecError as error:
            _log.warning("dropped a malformed message of a leader: %s", error)
            return True
        if isinstance(message, MemoryOpened):
            self._memory_peer = peer
            return True
        answer = self._inbox.take(peer, message)
        if answer is not None:
            self._send(peer, answer)
        return True


def _size(frames: Sequence[Frame]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)
