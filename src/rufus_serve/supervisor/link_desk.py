"""`LinkDesk`: what leader processes and commands tell the supervisor, and what it answers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rufus_serve.channel.peer import PeerServer
from rufus_serve.errors import LeaderError, class_of
from rufus_serve.protocol.messages import (
    Ack,
    AnyMessage,
    Drain,
    DrainGroup,
    EpochLost,
    GroupFailed,
    GroupIdle,
    LeaderHello,
    LeaderProgress,
    Order,
    RestartFollower,
    RestartGroup,
    Scale,
    Serving,
    Status,
    StatusRequest,
    TraceSteps,
)
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group import Group
from rufus_serve.supervisor.leader_link import LeaderLink
from rufus_serve.supervisor.scaling import Scaling

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LinkEvents:
    """What to call for what concerns the server as a whole."""

    serving: Callable[[str], None]
    """The API process of this leader id takes requests."""
    drain: Callable[[Drain], None]
    drained: Callable[[], None]
    """The API process has no request open any more."""
    status: Callable[[], Status]


class LinkDesk:
    """Gives each message to the group that it is about; event loop only."""

    def __init__(
        self,
        server: PeerServer,
        link: LeaderLink,
        groups: Sequence[Group],
        scaling: Scaling,
        events: LinkEvents,
    ) -> None:
        """`groups`: those that there are, as `scaling` has it."""
        self._server, self._link, self._events = server, link, events
        self._groups, self._scaling = groups, scaling

    async def take(self, peer: bytes, message: AnyMessage) -> None:
        """Act upon a message of `peer`, and answer orders."""
        match message:
            case LeaderHello():
                await self._hello(peer, message)
            case LeaderProgress() | EpochLost() | GroupFailed():
                if (number := self._link.group_of(peer)) is not None:
                    await self._take_from_engine(self._groups[number], message)
            case GroupIdle():
                if message.group < len(self._groups):
                    self._groups[message.group].is_idle()
            case Serving():
                self._events.serving(message.leader_id)
            case Ack():
                self._events.drained()
            case (
                StatusRequest()
                | RestartFollower()
                | RestartGroup()
                | DrainGroup()
                | Scale()
                | TraceSteps()
                | Drain()
            ):
                await self._server.send(peer, await self._obey(message))
            case _:
                _log.debug("ignored %s on the link", type(message).__name__)

    async def _hello(self, peer: bytes, hello: LeaderHello) -> None:
        if hello.role == "engine" and hello.group >= len(self._groups):
            return
        self._link.hello(peer, hello)
        if hello.role == "engine":
            self._groups[hello.group].engine.forget()
            await self._groups[hello.group].handle(ev.EngineJoined(leader_id=hello.leader_id))
        else:
            for group in self._groups:
                await group.tell_api()
            await self._scaling.tell_gone()

    async def _take_from_engine(self, group: Group, message: AnyMessage) -> None:
        match message:
            case LeaderProgress():
                await group.took_progress(message)
            case EpochLost():
                _log.warning("the leader gave up epoch %d: %s", message.epoch, message.reason)
                await group.handle(ev.EpochLost(epoch=message.epoch, reason=message.reason))
            case GroupFailed():
                kind = class_of(message.exit_code) or LeaderError
                await group.handle(ev.EngineFailed(reason=message.reason, kind=kind))

    async def _obey(self, order: Order) -> AnyMessage:
        match order:
            case StatusRequest():
                return self._events.status()
            case RestartFollower() | RestartGroup() | DrainGroup():
                return Ack(error=await self._maintain(order))
            case Scale():
                return Ack(error=await self._scaling.scale(order.groups))
            case TraceSteps():
                await self._link.to_engine(order.group, order)
            case Drain():
                self._events.drain(order)
        return Ack()

    async def _maintain(self, order: RestartFollower | RestartGroup | DrainGroup) -> str:
        """Do as told; why not, or else nothing."""
        if not 0 <= order.group < len(self._groups):
            return f"there is no group {order.group}"
        group = self._groups[order.group]
        match order:
            case DrainGroup():
                return await self._drain(group)
            case RestartGroup():
                await group.restart_all()
                return ""
            case RestartFollower():
                return await self._restart(group, order.node_rank)

    async def _drain(self, group: Group) -> str:
        if not any(other.takes_requests for other in self._groups if other is not group):
            return "no other group takes requests now; `rufus-serve drain` ends the server"
        await group.leave_rotation()
        return ""

    async def _restart(self, group: Group, rank: int) -> str:
        if group.state.phase is ev.GroupPhase.FAILED:
            return f"group {group.number} has failed ({group.state.failure}); restart it whole"
        if rank not in group.state.by_rank():
            return f"there is no follower {rank} to restart"
        await group.restart(rank)
        return ""
