"""`Timeline`: what happened to the groups, read off one status after another."""

import time
from collections import deque
from collections.abc import Iterator

from rufus_serve.leader.api.overview.views import Moment
from rufus_serve.protocol.messages import GroupStatus, Status

_KEPT = 100


class Timeline:
    """The last moments; event loop only."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=_KEPT)
        self._before: dict[int, GroupStatus] = {}
        self._pids: dict[tuple[int, int], int] = {}
        """Last known process by group and rank; one that is being started has none yet."""

    def take(self, status: Status) -> list[Moment]:
        """Note what changed since the status before; that."""
        now = time.time()
        told = [*self._gone(status), *self._replaced(status), *self._entered(status)]
        new = [Moment(at=now, group=group, what=what) for group, what in told]
        self._before = {group.group: group for group in status.groups}
        self._moments.extendleft(new)
        return new

    def note(self, group: int, what: str) -> Moment:
        """Something that a status does not tell."""
        moment = Moment(at=time.time(), group=group, what=what)
        self._moments.appendleft(moment)
        return moment

    def _gone(self, status: Status) -> Iterator[tuple[int, str]]:
        for number in sorted(self._before.keys() - {group.group for group in status.groups}):
            self._pids = {seat: pid for seat, pid in self._pids.items() if seat[0] != number}
            yield number, "gone: the server was scaled down"

    def _replaced(self, status: Status) -> Iterator[tuple[int, str]]:
        for follower in status.followers:
            seat, pid = (follower.group, follower.node_rank), follower.pid
            known = self._pids.get(seat, 0)
            if pid:
                self._pids[seat] = pid
            if pid and known and known != pid:
                where = f" on {follower.host}" if follower.host else ""
                yield follower.group, f"follower {follower.node_rank} was replaced{where}"

    def _entered(self, status: Status) -> Iterator[tuple[int, str]]:
        for group in status.groups:
            before = self._before.get(group.group)
            if before is None or (group.state, group.epoch) != (before.state, before.epoch):
                yield group.group, _told(group, before)

    def moments(self) -> tuple[Moment, ...]:
        """Newest first."""
        return tuple(self._moments)


def _told(now: GroupStatus, before: GroupStatus | None) -> str:
    text = f"{now.state}, epoch {now.epoch}"
    if before is not None and now.state == "ready" and now.recoveries > before.recoveries:
        return f"{text}, recovered in {now.recovery_s:.1f} s"
    return f"{text}: {now.detail}" if now.detail else text
