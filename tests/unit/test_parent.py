import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rufus_serve.parent import die_with_parent

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
PARENT = f"""
import subprocess
from rufus_serve.parent import die_with_parent
print(subprocess.Popen({SLEEP!r}, preexec_fn=die_with_parent).pid, flush=True)
input()
"""


def test_a_process_ends_with_the_one_that_started_it() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_parent_may_be_process_1_as_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    process = subprocess.run([sys.executable, "-c", ""], preexec_fn=die_with_parent, check=False)
    assert process.returncode == 0


def test_a_parent_that_was_gone_already_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(answers))
    process = subprocess.run(SLEEP, preexec_fn=die_with_parent, check=False)
    assert process.returncode == -signal.SIGTERM
