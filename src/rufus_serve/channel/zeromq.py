"""Step channel over ZeroMQ: one encrypted DEALER per follower, one ROUTER at each follower."""

import errno
import logging
import select
import threading
from collections.abc import Sequence

import zmq

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.inbox import Peer
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.sides import FollowerSide, LeaderSide
from rufus_serve.channel.sockets import (
    ClientGate,
    Context,
    LineEvent,
    LineMonitor,
    bind,
    connect,
    new_socket,
    poll_fd,
    receive_frames,
)
from rufus_serve.errors import EndpointError
from rufus_serve.protocol.codec import CodecError, decode, encode
from rufus_serve.protocol.messages import Message, StepEndpoint

_log = logging.getLogger(__name__)

_FLUSH_MS = 500


class _Line:
    """The leader's connection to one follower."""

    def __init__(self, context: Context, endpoint: StepEndpoint, keys: GroupKeys) -> None:
        self.node_rank = endpoint.node_rank
        self.socket = new_socket(context, zmq.DEALER)
        self.monitor = LineMonitor(self.socket)
        try:
            connect(self.socket, endpoint.endpoint, keys)
        except EndpointError:
            self.close()
            raise

    def close(self) -> None:
        self.monitor.close()
        self.socket.close()


class ZmqLeaderChannel(LeaderSide):
    """`LeaderChannel` over ZeroMQ; sockets are touched only under `_lock`."""

    def __init__(self, info: HelloInfo, keys: GroupKeys) -> None:
        super().__init__(info)
        self._keys = keys
        self._context: Context = zmq.Context()
        self._lock = threading.Lock()
        self._lines: list[_Line] = []
        self._poll = select.poll()

    def close(self) -> None:
        """Close the sockets; may be called twice, from any thread."""
        self._ledger.lose(-1, "the channel is closed")
        self._drop()
        self._context.term()

    def disconnect(self) -> None:
        """Break all connections of the epoch, as a network failure would."""
        self._drop()
        self._ledger.lose(0, "connection closed")

    def _open(self, endpoints: Sequence[StepEndpoint]) -> None:
        with self._lock:
            for endpoint in endpoints:
                self._lines.append(_Line(self._context, endpoint, self._keys))
            self._watch()

    def _drop(self) -> None:
        with self._lock:
            while self._lines:
                self._lines.pop().close()
            self._watch()

    def _watch(self) -> None:
        """Poll descriptors, not sockets, so that waiting needs no lock."""
        self._poll = select.poll()
        for line in self._lines:
            self._poll.register(poll_fd(line.socket), select.POLLIN)
            self._poll.register(poll_fd(line.monitor.socket), select.POLLIN)

    def _send(self, message: Message) -> None:
        # Copied once and then shared: small frames are cheaper so, and the caller may reuse
        # its arrays.
        frames = [zmq.Frame(frame, copy=True) for frame in encode(message)]
        with self._lock:
            for line in self._lines:
                line.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def _pump(self, timeout_s: float) -> None:
        if timeout_s:
            self._poll.poll(timeout_s * 1000)
        with self._lock:
            for line in list(self._lines):
                self._drain(line)

    def _drain(self, line: _Line) -> None:
        # Events first: what a follower sent before it hung up is then in the socket already.
        events: list[LineEvent] = []
        line.monitor.drain(events.append)
        while (frames := receive_frames(line.socket)) is not None:
            self._take(line.node_rank, frames)
        if LineEvent.REFUSED in events:
            self._ledger.refuse(line.node_rank, "it was started with another token")
        if LineEvent.DOWN in events:
            self._ledger.lose(line.node_rank, "connection closed")
            # libzmq would connect again, and hand this epoch's queue to whoever answers.
            self._lines.remove(line)
            line.close()
            self._watch()

    def _take(self, node_rank: int, frames: list[memoryview]) -> None:
        try:
            self._ledger.take(node_rank, decode(frames))
        except CodecError as error:
            self._ledger.lose(node_rank, f"sent a malformed message: {error}")


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
    ) -> None:
        """Listen at `address`:`port`, 0 for a free port.

        Raises:
            EndpointError: the address cannot be used.
        """
        super().__init__(info, node_rank)
        self._keys = keys
        self._context: Context = zmq.Context()
        self._gate = ClientGate(self._context, keys)
        self._lock = threading.Lock()
        self._closed = False
        literal = f"[{address}]" if ":" in address else address
        self._socket = new_socket(self._context, zmq.ROUTER)
        try:
            self._listen(f"tcp://{literal}:{port}")
        except EndpointError:
            self.close()
            raise
        self._endpoint = StepEndpoint(
            node_rank=node_rank,
            host=host,
            endpoint=self._socket.getsockopt_string(zmq.LAST_ENDPOINT),
            server_key=keys.server_public.decode(),
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
            self._socket.close(linger=_FLUSH_MS)
        self._context.term()
        self._gate.join()

    def _listen(self, endpoint: str) -> None:
        self._socket.router_mandatory = True
        bind(self._socket, endpoint, self._keys)
        self._poll = select.poll()
        self._poll.register(poll_fd(self._socket), select.POLLIN)

    def _send(self, peer: Peer, message: Message) -> None:
        frames = encode(message)
        with self._lock:
            if self._closed:
                return
            try:
                self._socket.send_multipart([peer, *frames], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                _log.info("%s not sent: its leader is gone", type(message).__name__)

    def _pump(self, timeout_s: float) -> None:
        if timeout_s:
            self._poll.poll(timeout_s * 1000)
        answers = []
        with self._lock:
            while not self._closed and (received := receive_frames(self._socket)) is not None:
                peer, *frames = received
                try:
                    answer = self._inbox.take(bytes(peer), decode(frames))
                except CodecError as error:
                    _log.warning("dropped a malformed message of a leader: %s", error)
                    continue
                if answer is not None:
                    answers.append((bytes(peer), answer))
        for peer_name, answer in answers:
            self._send(peer_name, answer)
