"""How long each follower computes per step, to tell a slow one from its waiting peers."""

import threading
from collections.abc import Sequence

from rufus_serve.protocol.messages import StepReply


class StepPace:
    """Mean compute time per step and follower since the last `take`; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[int, float] = {}
        self._steps = 0

    def observe(self, replies: Sequence[StepReply]) -> None:
        """One step's replies, of all followers."""
        with self._lock:
            self._steps += 1
            for reply in replies:
                spent = max(0.0, reply.compute_s - reply.wait_s)
                self._sums[reply.node_rank] = self._sums.get(reply.node_rank, 0.0) + spent

    def take(self) -> tuple[float, ...]:
        """Seconds per step by node rank; empty if there was no step."""
        with self._lock:
            sums, steps = self._sums, self._steps
            self._sums, self._steps = {}, 0
        if not steps:
            return ()
        return tuple(sums.get(rank, 0.0) / steps for rank in range(max(sums) + 1))
