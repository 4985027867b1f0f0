"""The supervisor's side of the link to the leader's processes."""

from rufus_serve.channel.peer import PeerServer
from rufus_serve.protocol.messages import AnyMessage, LeaderHello

_API = -1


class LeaderLink:
    """Remembers which peer is the API process, and which is which group's engine."""

    def __init__(self, server: PeerServer) -> None:
        self._server = server
        self._peers: dict[int, bytes] = {}
        """By group, and the API process."""

    def hello(self, peer: bytes, message: LeaderHello) -> None:
        """A leader process connected (again)."""
        self._peers[_API if message.role == "api" else message.group] = peer

    def group_of(self, peer: bytes) -> int | None:
        """The group whose engine `peer` is; None if it is none, or was succeeded by another."""
        found = (group for group, each in self._peers.items() if each == peer and group != _API)
        return next(found, None)

    def forget(self) -> None:
        """The leader process ended, and its engines with it."""
        self._peers.clear()

    def forget_engine(self, group: int) -> None:
        """The group is gone; nothing that its engine says counts any more."""
        self._peers.pop(group, None)

    async def to_engine(self, group: int, message: AnyMessage) -> None:
        """Send to a group's engine, if there is one."""
        if group in self._peers:
            await self._server.send(self._peers[group], message)

    async def to_api(self, message: AnyMessage) -> bool:
        """Send to the API process; False if there is none."""
        peer = self._peers.get(_API)
        return peer is not None and await self._server.send(peer, message)
