"""Followers that wait for a leader do not follow one with other settings."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.timeout(120)


def test_waiting_followers_refuse_a_leader_of_other_settings_and_are_replaced(
    tiny_model: Path, tmp_path: Path
) -> None:
    flags = (
        "--nodes=2", "--cluster.kind=local", "--recovery.on-leader-loss=wait",
        f"--cluster.state-dir={tmp_path}", "--max-model-len=256", "--buckets.prefill=64",
    )  # fmt: skip
    first = Server(tiny_model, *flags)
    second = None
    try:
        first.wait_ready()
        waiting = first.followers()
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(10)
        second = Server(tiny_model, *flags, "--max-num-seqs=4", f"--port={first.port}")
        second.port = first.port
        second.wait_ready()
        assert len(second.greedy([5, 6, 7], 4)) == 4
        refusals = [line for line in second.log.splitlines() if "has configuration" in line]
        assert any("start both with the same settings" in line for line in refusals), second.log
        assert not {each.pid for each in waiting} & {each.pid for each in second.followers()}
        gone = time.monotonic() + 10.0
        while any(each.is_running() and each.status() != "zombie" for each in waiting):
            assert time.monotonic() < gone, [psutil.Process(each.pid) for each in waiting]
            time.sleep(0.1)
        assert second.stop() == 0
    finally:
        for server in (second, first):
            if server is not None:
                server.remove()
