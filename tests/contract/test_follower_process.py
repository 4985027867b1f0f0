"""A follower process alone: how it ends when nobody leads it."""

import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import pytest

from rufus_serve.channel.keys import new_token
from rufus_serve.config import ServeConfig
from rufus_serve.errors import LeaderLost
from rufus_serve.protocol.specs import FollowerSpec

NOBODY = "tcp://127.0.0.1:1"


class Follower:
    """A follower whose supervisor never says a word."""

    def __init__(self, **recovery: str) -> None:
        config = ServeConfig(
            model="/nowhere",
            recovery=recovery,
            timeouts={"join_s": 3.0, "heartbeat_s": 0.2, "heartbeat_lost_s": 1.0},
        )
        spec = FollowerSpec(
            config=config.model_dump(mode="json"),
            node_rank=0,
            follower_id="0.1",
            control_endpoint=NOBODY,
            token=new_token(),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rufus_serve.follower"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(spec) + b"\n")
        self.process.stdin.flush()

    def end(self, *, within_s: float) -> tuple[int, str]:
        """Exit code and log."""
        code = self.process.wait(within_s)
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()


@pytest.fixture
def start() -> Iterator:
    started = []

    def start(**recovery: str) -> Follower:
        started.append(Follower(**recovery))
        return started[-1]

    yield start
    for follower in started:
        follower.close()


def test_a_follower_without_a_leader_exits_with_the_code_of_a_lost_leader(start):
    """Whoever started it may have ended long before: that is no sign of the leader's end."""
    follower = start(on_leader_loss="exit")
    follower.process.stdin.close()
    code, log = follower.end(within_s=30)
    assert code == LeaderLost.exit_code == 11
    assert "no word from the leader for" in log


def test_a_follower_that_is_to_wait_outlives_parent_and_silence(start):
    follower = start(on_leader_loss="wait")
    follower.process.stdin.close()
    time.sleep(6.0)
    assert follower.process.poll() is None
