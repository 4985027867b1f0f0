"""A follower's conversation with the supervisor: orders in, news and heartbeats out."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable

from rufus_serve import __version__
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient
from rufus_serve.config import ServeConfig
from rufus_serve.errors import LeaderLost
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    ControlMessage,
    FollowerHello,
    FormGroup,
    Heartbeat,
    HeartbeatAck,
    Refused,
    Stop,
    Welcome,
)
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0
_LEAVE_S = 1.0
"""For the main thread to end by itself."""

Order = Welcome | Refused | FormGroup | Stop


class Control:
    """Queues the supervisor's orders for the main thread and answers for it meanwhile.

    The heartbeat thread says hello until it is acknowledged (again, after a silence), so a
    supervisor that was restarted learns of this follower by itself.
    """

    def __init__(
        self,
        spec: FollowerSpec,
        config: ServeConfig,
        *,
        interrupt: Callable[[], None],
        num_stale: Callable[[], int],
    ) -> None:
        """Both are called on the heartbeat thread; `num_stale`: steps that came too late."""
        self._spec, self._config = spec, config
        self._interrupt, self._num_stale = interrupt, num_stale
        self.node_rank = spec.node_rank
        self._orders: queue.Queue[Order] = queue.Queue()
        self._unanswered = 0
        """Heartbeats since the supervisor was last heard: a stalled interpreter sends none."""
        self._met = False
        self._known = False
        self._closed, self._made = threading.Event(), threading.Event()
        self._peer = PeerClient(
            spec.control_endpoint,
            keys=GroupKeys.from_token(spec.token),
            on_message=self._receive,
            on_connection=self._on_connection,
            on_refused=lambda error: self._orders.put(Refused(reason=str(error))),
        )
        self._made.set()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def silence_s(self) -> float:
        """How long the supervisor has been silent; a stall of this process does not count."""
        return self._unanswered * self._config.timeouts.heartbeat_s

    @property
    def is_leader_lost(self) -> bool:
        """Whether this follower has to end for want of a leader."""
        timeouts = self._config.timeouts
        limit_s = timeouts.heartbeat_lost_s if self._met else timeouts.join_s
        return self._config.recovery.on_leader_loss == "exit" and self.silence_s > limit_s

    def send(self, message: ControlMessage) -> None:
        """Queue `message` for the supervisor; any thread."""
        self._peer.send(message)

    def next_order(self, *, timeout_s: float) -> Order | None:
        """The supervisor's next order, or None after `timeout_s`."""
        try:
            return self._orders.get(timeout=timeout_s) if timeout_s else self._orders.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Hang up."""
        self._closed.set()
        self._peer.close()

    def _hello(self) -> FollowerHello:
        return FollowerHello(
            protocol_version=PROTOCOL_VERSION,
            package_version=__version__,
            config_hash=self._config.group_hash(),
            follower_id=self._spec.follower_id,
            node_rank=self.node_rank,
            host=socket.gethostname(),
            address=self._spec.address,
            pid=os.getpid(),
        )

    def _on_connection(self, connected: bool) -> None:
        self._known = False
        if connected and self._made.wait(_PATIENCE_S):
            self._peer.send(self._hello())

    def _receive(self, message: AnyMessage) -> None:
        self._unanswered, self._met = 0, True
        if isinstance(message, HeartbeatAck):
            self._known = True
        elif isinstance(message, Welcome | Refused | FormGroup | Stop):
            if isinstance(message, Welcome):
                self.node_rank = message.node_rank
            if isinstance(message, FormGroup | Stop):
                # Before the order is queued: an abort that came later would hit its own epoch.
                self._interrupt()
            self._orders.put(message)

    def _run(self) -> None:
        while not self._closed.wait(self._config.timeouts.heartbeat_s):
            if not self._known and self.silence_s > 2 * self._config.timeouts.heartbeat_s:
                self._peer.send(self._hello())
            self._peer.send(Heartbeat(stale_steps=self._num_stale()))
            self._unanswered += 1
            self._interrupt_if_ordered()
            if self.is_leader_lost and not self._closed.wait(_LEAVE_S):
                # The main thread is in a call that takes its time, such as a load.
                _log.error("no word from the leader for %.1f s", self.silence_s)
                os._exit(LeaderLost.exit_code)

    def _interrupt_if_ordered(self) -> None:
        """An order that came just before a collective began would wait for it forever."""
        with self._orders.mutex:  # No order is taken, and its epoch begun, before the abort.
            if any(isinstance(order, FormGroup | Stop) for order in self._orders.queue):
                self._interrupt()
