"""`Timeline`: what happened to the groups, read off one status after another."""

import time
from collections import deque
from collections.abc import Iterator

from rufus_serve.leader.api.overview.views import Moment
from rufus_serve.protocol.messages import Status

_KEPT = 100


class Timeline:
    """The last moments; event loop only."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=_KEPT)
        self._before: Status | None = None
        self._pids: dict[int, int] = {}
        """Last known process of each rank; one that is being started has none yet."""

    def take(self, status: Status) -> list[Moment]:
        """Note what changed since the status before; that."""
        before, self._before = self._before, status
        now = time.time()
        told = (*self._replaced(status), *_changes(before, status))
        new = [Moment(at=now, group=group, what=what) for group, what in told]
        self._moments.extendleft(new)
        return new

    def _replaced(self, status: Status) -> Iterator[tuple[int, str]]:
        for follower in status.followers:
            known, pid = self._pids.get(follower.node_rank, 0), follower.pid
            if pid:
                self._pids[follower.node_rank] = pid
            if pid and known and known != pid:
                where = f" on {follower.host}" if follower.host else ""
                yield 0, f"follower {follower.node_rank} was replaced{where}"

    def moments(self) -> tuple[Moment, ...]:
        """Newest first."""
        return tuple(self._moments)


def _changes(before: Status | None, now: Status) -> Iterator[tuple[int, str]]:
    if before is None:
        yield 0, _entered(now)
        return
    if now.state != before.state or now.epoch != before.epoch:
        yield 0, _entered(now, recovered=now.epoch > before.epoch > 0)


def _entered(status: Status, *, recovered: bool = False) -> str:
    text = f"{status.state}, epoch {status.epoch}"
    if status.state == "ready" and recovered and status.recovery_s:
        return f"{text}, recovered in {status.recovery_s:.1f} s"
    return f"{text}: {status.detail}" if status.detail else text
