"""The engine's conversation with the supervisor: which group there is, and how steps go."""

import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient
from rufus_serve.errors import RufusError
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.protocol.messages import (
    EpochLost,
    GroupFailed,
    GroupReady,
    LeaderHello,
    LeaderProgress,
    TraceSteps,
)
from rufus_serve.protocol.specs import LeaderSpec

_log = logging.getLogger(__name__)
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class GroupEvents:
    """What to call on news of the group; the link's IO thread calls them, so they must be quick."""

    on_ready: Callable[[GroupReady], None]
    on_lost: Callable[[EpochLost], None]
    on_trace: Callable[[int, str], None]


class GroupLink:
    """Link with role `engine`; a thread of its own reports progress.

    That thread also ends the process when the API process is gone: nobody could use it any more.
    """

    def __init__(
        self,
        spec: LeaderSpec,
        *,
        engine: EngineSpec,
        events: GroupEvents,
        progress: Callable[[], LeaderProgress],
        interval_s: float,
    ) -> None:
        self._events = events
        self._progress = progress
        self._interval_s = interval_s
        self._closed, self._made = threading.Event(), threading.Event()
        self._api_process = os.pidfd_open(engine.api_pid)
        self._hello = LeaderHello(leader_id=engine.engine_id, role="engine", group=engine.group)
        self._peer = PeerClient(
            spec.link_endpoint,
            keys=GroupKeys.from_token(spec.token),
            on_message=self._receive,
            on_connection=self._on_connection,
        )
        self._made.set()
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)
        self._thread.start()

    def tell_lost(self, epoch: int, reason: str) -> None:
        """Tell the supervisor that a follower of `epoch` is dead, hung or failing."""
        self._peer.send(EpochLost(epoch=epoch, reason=reason))

    def fail(self, error: RufusError) -> None:
        """Tell the supervisor that no group can be stepped any more, for it to end everything."""
        self._peer.send(GroupFailed(reason=str(error), exit_code=error.exit_code))

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
            case EpochLost():
                self._events.on_lost(message)
            case TraceSteps():
                self._events.on_trace(message.num_steps, message.path)
            case _:
                _log.debug("ignored %s", type(message).__name__)

    def _report(self) -> None:
        while not self._closed.wait(self._interval_s):
            if select.select([self._api_process], [], [], 0)[0]:
                _log.warning("the API process is gone; the engine ends")
                os._exit(0)
            self._peer.send(self._progress())
