"""`FollowerDesk`: follower messages into events, and orders to the right connection."""

import logging
from collections.abc import Sequence

from rufus_serve import __version__
from rufus_serve.channel.peer import PeerServer
from rufus_serve.cluster.base import FollowerExit
from rufus_serve.config import ServeConfig
from rufus_serve.errors import FollowerError, class_of
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    FollowerFailed,
    FollowerForming,
    FollowerGaveUp,
    FollowerHello,
    FollowerLoaded,
    FollowerProgress,
    FollowerReady,
    Heartbeat,
    HeartbeatAck,
    Refused,
    StepEndpoint,
    Stop,
)
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.fatal import kind_of_exit
from rufus_serve.supervisor.group_file import KeptFollower
from rufus_serve.supervisor.group_state import GroupState
from rufus_serve.supervisor.report import Report

_log = logging.getLogger(__name__)


class FollowerDesk:
    """Knows which connection belongs to which follower process."""

    def __init__(
        self,
        server: PeerServer,
        config: ServeConfig,
        states: Sequence[GroupState],
        report: Report,
    ) -> None:
        """Of all groups, whose states are `states`: they may come and go."""
        self._server, self._config = server, config
        self._states, self._report = states, report
        self._peers: dict[str, bytes] = {}
        self._ids: dict[bytes, str] = {}
        self._replaced: set[bytes] = set()
        self._errors: dict[str, str] = {}
        self._kept: dict[str, KeptFollower] = {}
        self._waiting: dict[str, ev.Joined] = {}
        self.exits: list[FollowerExit] = []

    async def take(self, peer: bytes, message: AnyMessage) -> list[ev.MemberEvent]:
        """The events in `message`; a hello of the wrong kind is refused here."""
        if isinstance(message, FollowerHello):
            return await self._hello(peer, message)
        if peer in self._replaced:
            # It is alive all the same: its agent died, or the kill did not reach it.
            await self._server.send(peer, Refused(reason="this follower has been replaced"))
            return []
        member = self._member(self._ids.get(peer, ""))
        if member is None:
            return []
        if isinstance(message, Heartbeat):
            await self._server.send(peer, HeartbeatAck())
        event = self._event(member, message)
        return [event] if event is not None else []

    def _event(self, member: ev.Member, message: AnyMessage) -> ev.MemberEvent | None:
        """What `message` of `member` means to the state machine."""
        who = member.follower_id
        event: ev.MemberEvent | None = ev.Heard(follower_id=who)
        match message:
            case Heartbeat():
                event = ev.Heard(follower_id=who, stale_steps=message.stale_steps)
            case FollowerForming():
                event = ev.Grouping(follower_id=who, epoch=message.epoch)
            case FollowerGaveUp():
                event = ev.GaveUp(follower_id=who, epoch=message.epoch, reason=message.reason)
            case FollowerProgress():
                self._report.progress(
                    member, done=message.done, total=message.total, detail=message.detail
                )
            case FollowerLoaded():
                event = ev.Loaded(follower_id=who, info=message.info, load_count=message.load_count)
            case FollowerReady():
                event = ev.Ready(
                    follower_id=who,
                    epoch=message.epoch,
                    endpoint=_endpoint_of(member, message),
                    warm_up_s=message.warm_up_s,
                )
            case FollowerFailed():
                self._errors[who] = f"{message.phase}: {message.error}"
                kind = class_of(message.exit_code) or FollowerError
                event = ev.Failed(follower_id=who, reason=message.error, kind=kind)
            case _:
                _log.debug("ignored %s of follower %s", type(message).__name__, who)
                event = None
        return event

    async def _hello(self, peer: bytes, hello: FollowerHello) -> list[ev.MemberEvent]:
        refusal = self._refusal(hello)
        if refusal:
            _log.warning("refused a follower: %s", refusal)
            await self._server.send(peer, Refused(reason=refusal))
            return []
        known = self._peers.get(hello.follower_id) == peer
        self._peers[hello.follower_id] = peer
        self._ids[peer] = hello.follower_id
        await self._server.send(peer, HeartbeatAck())
        if known:
            return [ev.Heard(follower_id=hello.follower_id)]
        joined = ev.Joined(
            follower_id=hello.follower_id, host=hello.host, address=hello.address, pid=hello.pid
        )
        if hello.follower_id in self._kept:
            self._waiting[hello.follower_id] = joined
            return []
        return [joined]

    def _refusal(self, hello: FollowerHello) -> str:
        """Why this follower cannot be taken; empty if it can."""
        who = f"follower {hello.follower_id} on {hello.host}"
        if hello.protocol_version != PROTOCOL_VERSION:
            return (
                f"{who} speaks protocol {hello.protocol_version} (rufus-serve "
                f"{hello.package_version}), the leader {PROTOCOL_VERSION} ({__version__}); "
                "install the same version on both"
            )
        expected = self._config.group_hash()
        if hello.config_hash != expected:
            return (
                f"{who} has configuration {hello.config_hash}, the leader {expected}; "
                "start both with the same settings"
            )
        if self._member(hello.follower_id) is None and hello.follower_id not in self._kept:
            return f"{who} is not (or no longer) part of this group"
        return ""

    async def find_connected(self, now: float) -> list[ev.MemberEvent]:
        """What speaks for followers that have said nothing for a while.

        A follower that loads may hold its interpreter for long; libzmq keeps its connection.
        """
        silent_s = self._config.timeouts.heartbeat_lost_s / 4
        found: list[ev.MemberEvent] = []
        for member in [each for state in self._states for each in state.members.values()]:
            peer = self._peers.get(member.follower_id)
            silent = now - member.heard > silent_s
            if silent and peer and await self._server.send(peer, HeartbeatAck()):
                found.append(ev.Connected(follower_id=member.follower_id))
        return found

    def _member(self, follower_id: str) -> ev.Member | None:
        found = (state.members.get(follower_id) for state in self._states)
        return next((member for member in found if member is not None), None)

    def forgive(self) -> None:
        """What ended before is of no interest any more, once every group serves."""
        if all(state.phase is ev.GroupPhase.READY for state in self._states):
            self.exits.clear()

    def expect(self, kept: tuple[KeptFollower, ...]) -> None:
        """Let followers that wait for a leader say hello before the group is started."""
        self._kept = {follower.follower_id: follower for follower in kept}

    def waiting(self) -> list[tuple[ev.Joined, KeptFollower]]:
        """Those that did, once: later hellos of unknown followers are refused."""
        found = [(joined, self._kept[name]) for name, joined in self._waiting.items()]
        self._kept, self._waiting = {}, {}
        return found

    async def send(self, follower_id: str, message: AnyMessage) -> None:
        """Send to a follower; a lost one is noticed elsewhere."""
        peer = self._peers.get(follower_id)
        if peer is not None:
            await self._server.send(peer, message)

    async def stop_all(self, reason: str) -> None:
        """Tell every follower to end."""
        for follower_id in list(self._peers):
            await self.send(follower_id, Stop(reason=reason))

    def forget(self, follower_id: str) -> None:
        """The follower's connection means nothing any more."""
        peer = self._peers.pop(follower_id, None)
        if peer is not None:
            self._ids.pop(peer, None)
            self._replaced.add(peer)

    def ended(self, news: FollowerExit) -> ev.Failed:
        """A follower process ended; what it reported before outweighs how it did."""
        self.exits.append(news)
        _log.info("follower %s %s", news.follower_id, news.reason)
        reason = self._errors.get(news.follower_id) or news.reason
        return ev.Failed(follower_id=news.follower_id, reason=reason, kind=kind_of_exit(news.code))


def _endpoint_of(member: ev.Member, message: FollowerReady) -> StepEndpoint:
    return StepEndpoint(node_rank=member.node_rank, host=member.host, endpoint=message.endpoint)
