"""A server with several groups."""

import re
import time
from collections.abc import Callable

import psutil

from rufus_serve.protocol.messages import FollowerStatus
from tests.e2e.losses import status_of
from tests.e2e.recorded import FLAGS, Recorded
from tests.e2e.streams import Streams


class Groups(Recorded):
    """Knows its groups, and takes followers from them."""

    FLAGS = FLAGS

    def follower(self, group: int) -> tuple[int, int]:
        """Process id and weight loads of its first follower."""
        found = self._follower(group, 0)
        return found.pid, found.load_count

    def pids(self) -> dict[tuple[int, int], int]:
        """Process ids of all followers by group and rank."""
        found = status_of(self.server).followers
        return {(each.group, each.node_rank): each.pid for each in found}

    def kill_follower(self, group: int, rank: int = 0) -> None:
        psutil.Process(self._follower(group, rank).pid).kill()

    def start_and_wait(self) -> Streams:
        self.wait_all_ready()
        return super().start_and_wait()

    def wait_all_ready(self, *, deadline_s: float = 60.0) -> None:
        self.wait_until(
            lambda: all(group.ready for group in status_of(self.server).groups),
            deadline_s=deadline_s,
        )

    def wait_until(self, condition: Callable[[], bool], *, deadline_s: float = 60.0) -> None:
        give_up = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < give_up, self.server.log
            time.sleep(0.05)

    def tokens_of(self, metrics: str, group: str) -> float:
        """Tokens that vLLM's metrics say a group has brought."""
        samples = re.findall(
            rf'^vllm:generation_tokens_total{{engine="{group}".*}} (\S+)$', metrics, re.M
        )
        return sum(map(float, samples))

    def _follower(self, group: int, rank: int) -> FollowerStatus:
        (found,) = (
            each
            for each in status_of(self.server).followers
            if (each.group, each.node_rank) == (group, rank)
        )
        return found
