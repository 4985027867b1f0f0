"""The supervisor's side of the link to the leader's two processes."""

import logging
from collections.abc import Mapping

from rufus_serve.channel.peer import PeerServer
from rufus_serve.protocol.messages import AnyMessage, LeaderHello, LeaderProgress
from rufus_serve.supervisor.lag import LagWatch

_log = logging.getLogger(__name__)


class LeaderLink:
    """Remembers which peer is the engine and which is the API process, and how steps go."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._peers: dict[str, bytes] = {}
        self.progress: LeaderProgress | None = None
        self.progress_at = 0.0
        self.moved_at = 0.0
        """When the engine last did a step, had one under way, or had nothing to do."""
        self.turned_at = 0.0
        """When its main loop last turned, or had a step under way."""
        self.lag = LagWatch()

    def hello(self, peer: bytes, message: LeaderHello) -> None:
        """A leader process connected (again)."""
        self._peers[message.role] = peer
        if message.role == "engine":
            self.progress = None

    def took_progress(self, message: LeaderProgress, now: float, hosts: Mapping[int, str]) -> None:
        """The engine's heartbeat; `hosts` are the followers' by rank."""
        before, self.progress, self.progress_at = self.progress, message, now
        stuck = message.num_running > 0 and not message.steps_in_flight
        if before is None or before.steps_done != message.steps_done or not stuck:
            self.moved_at = now
        asked = before is not None and message.turns and message.turns == before.turns
        if not asked or message.steps_in_flight:
            self.turned_at = now
        for warning in self.lag.take(message.follower_step_s, hosts):
            _log.warning("%s", warning)

    def forget(self) -> None:
        """The leader process ended."""
        self._peers.clear()
        self.progress = None

    async def to_engine(self, message: AnyMessage) -> None:
        """Send to the engine, if there is one."""
        if "engine" in self._peers:
            await self._server.send(self._peers["engine"], message)

    async def to_api(self, message: AnyMessage) -> bool:
        """Send to the API process; False if there is none."""
        peer = self._peers.get("api")
        return peer is not None and await self._server.send(peer, message)
