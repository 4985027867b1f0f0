"""The API process's conversation with the supervisor: status, drain, failure."""

import asyncio
from collections.abc import Callable
from typing import Any

from rufus_serve import errors
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient
from rufus_serve.errors import RufusError
from rufus_serve.protocol.messages import (
    Ack,
    Drain,
    GroupFailed,
    GroupIdle,
    GroupNews,
    LeaderHello,
    Serving,
    Status,
    StatusRequest,
)
from rufus_serve.protocol.specs import LeaderSpec

_ANSWER_S = 2.0


class ApiLink:
    """Link with role `api`; made and used on the event loop's thread."""

    def __init__(
        self,
        spec: LeaderSpec,
        *,
        on_drain: Callable[[float], None],
        on_failed: Callable[[RufusError], None],
        on_group: Callable[[GroupNews], None],
    ) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._on_drain = on_drain
        self._on_failed = on_failed
        """Called with why no group will serve any more."""
        self._on_group = on_group
        self._leader_id = spec.leader_id
        self._serving = False
        self._asked: asyncio.Future[Status] | None = None
        self._peer = PeerClient(
            spec.link_endpoint,
            keys=GroupKeys.from_token(spec.token),
            on_message=lambda message: self._on_loop(self._receive, message),
            on_connection=lambda connected: self._on_loop(self._on_connection, connected),
        )

    async def status(self) -> Status | None:
        """What the supervisor says of the group; None if it does not answer."""
        if self._asked is None:
            self._asked = self._event_loop.create_future()
            self._peer.send(StatusRequest())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asked), _ANSWER_S)
        except (asyncio.TimeoutError, TimeoutError):
            self._asked = None
            return None

    def serving(self) -> None:
        """Tell the supervisor that requests are taken from now on."""
        self._serving = True
        self._peer.send(Serving(leader_id=self._leader_id))

    def acknowledge(self) -> None:
        """Tell the supervisor that no inference request is open any more."""
        self._peer.send(Ack())

    def idle(self, group: int) -> None:
        """Tell the supervisor that a group has no request any more."""
        self._peer.send(GroupIdle(group=group))

    def close(self) -> None:
        """Hang up."""
        self._peer.close()

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._peer.send(LeaderHello(leader_id=self._leader_id, role="api"))
        if connected and self._serving:
            self.serving()

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        if not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(call, *args)

    def _receive(self, message: Any) -> None:
        match message:
            case Status():
                asked, self._asked = self._asked, None
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case Drain():
                self._on_drain(message.grace_s)
            case GroupNews():
                self._on_group(message)
            case GroupFailed():
                self._on_failed(errors.of(message.exit_code, message.reason))
            case _:
                pass
