"""The engine's conversation with the supervisor: which group there is, and how steps go."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rufus_serve import __version__
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient
from rufus_serve.config import ServeConfig
from rufus_serve.leader.engine import Engine
from rufus_serve.leader.step_pace import StepPace
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    FollowerSuspected,
    GroupFailed,
    GroupLost,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    Stop,
)
from rufus_serve.protocol.specs import LeaderSpec

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0


def hello(spec: LeaderSpec, config: ServeConfig, *, role: str) -> LeaderHello:
    """How a leader process of `role` (engine or api) announces itself."""
    return LeaderHello(
        protocol_version=PROTOCOL_VERSION,
        package_version=__version__,
        config_hash=config.group_hash(),
        leader_id=spec.leader_id,
        pid=os.getpid(),
        role=role,
    )


@dataclass(frozen=True)
class GroupEvents:
    """What to call on news of the group; the link's IO thread calls them, so they must be quick."""

    on_ready: Callable[[GroupReady], None]
    on_lost: Callable[[GroupLost], None]
    on_failed: Callable[[GroupFailed], None]


class GroupLink:
    """Link with role `engine`; a thread of its own reports progress.

    That thread also ends the process when its parent is gone: nobody could use it any more.
    """

    def __init__(
        self,
        spec: LeaderSpec,
        config: ServeConfig,
        *,
        events: GroupEvents,
        progress: Callable[[], LeaderProgress],
    ) -> None:
        self._events = events
        self._progress = progress
        self._interval_s = config.timeouts.heartbeat_s
        self._closed, self._made = threading.Event(), threading.Event()
        self._parent = os.getppid()
        self._hello = hello(spec, config, role="engine")
        self._peer = PeerClient(
            spec.link_endpoint,
            keys=GroupKeys.from_token(spec.token),
            on_message=self._receive,
            on_connection=self._on_connection,
        )
        self._made.set()
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)
        self._thread.start()

    def suspect(self, epoch: int, node_rank: int, reason: str) -> None:
        """Tell the supervisor that a follower of `epoch` is dead, hung or failing."""
        self._peer.send(FollowerSuspected(epoch=epoch, node_rank=node_rank, reason=reason))

    def close(self) -> None:
        """Stop reporting and hang up; may be called twice."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join(timeout=2.0)
            self._peer.close()

    def _on_connection(self, connected: bool) -> None:
        if connected and self._made.wait(_PATIENCE_S):
            self._peer.send(self._hello)

    def _receive(self, message: Any) -> None:
        match message:
            case GroupReady():
                self._events.on_ready(message)
            case GroupLost():
                self._events.on_lost(message)
            case GroupFailed():
                self._events.on_failed(message)
            case Stop():
                _log.debug("the API process handles Stop")
            case _:
                _log.debug("ignored %s", type(message).__name__)

    def _report(self) -> None:
        while not self._closed.wait(self._interval_s):
            if os.getppid() != self._parent:
                _log.warning("the API process is gone; the engine ends")
                os._exit(0)
            self._peer.send(self._progress())


class Progress:
    """Counts steps for the heartbeat; any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started: dict[int, float] = {}
        self._done = 0
        self._lock = threading.Lock()
        self.epoch = -1
        self.pace = StepPace()

    def begin(self, step_id: int) -> None:
        """A step was sent."""
        with self._lock:
            self._started[step_id] = time.monotonic()

    def end(self, step_id: int) -> None:
        """A step was answered."""
        with self._lock:
            self._started.pop(step_id, None)
            self._done += 1

    def forget(self) -> None:
        """Steps in flight will never be answered."""
        with self._lock:
            self._started.clear()

    def report(self) -> LeaderProgress:
        """The heartbeat as of now."""
        running, waiting = self._engine.request_counts()
        with self._lock:
            oldest = min(self._started.values(), default=None)
            in_flight, done = len(self._started), self._done
        return LeaderProgress(
            epoch=self.epoch,
            steps_done=done,
            steps_in_flight=in_flight,
            oldest_step_s=0.0 if oldest is None else time.monotonic() - oldest,
            num_running=running,
            num_waiting=waiting,
            follower_step_s=self.pace.take(),
        )
