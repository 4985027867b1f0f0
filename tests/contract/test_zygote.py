import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rufus_serve.errors import LeaderError
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.zygote import Zygote


def write_down(spec: EngineSpec) -> None:
    """An engine that says who it is and what it holds open, and stays."""
    own = EngineSpec.from_environment()
    files = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(str(entry.readlink()))
    num_threads = len(list(Path("/proc/self/task").iterdir()))
    spec.path("partial").write_text("\n".join([own.engine_id, str(num_threads), *files]))
    spec.path("partial").rename(spec.path("written"))
    time.sleep(60)


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    made = Zygote(write_down)
    yield made
    made.close()


def wait(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_each_engine_is_a_process_that_knows_its_own_spec(zygote: Zygote, tmp_path: Path) -> None:
    specs = [EngineSpec.new(0, str(tmp_path)) for _ in range(3)]
    pids = {zygote.fork_engine(spec) for spec in specs}
    assert len(pids | {zygote.pid, os.getpid()}) == 5
    for spec in specs:
        wait(spec.path("written").exists)
        engine_id, num_threads, *_ = spec.path("written").read_text().splitlines()
        assert (engine_id, num_threads) == (spec.engine_id, "1")


def test_an_engine_holds_no_file_or_connection_of_the_api_process(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with secret.open("w"):
        zygote = Zygote(write_down)
    spec = EngineSpec.new(0, str(tmp_path))
    zygote.fork_engine(spec)
    wait(spec.path("written").exists)
    inherited = spec.path("written").read_text()
    zygote.close()
    assert str(secret) not in inherited
    assert "socket:" not in inherited


def test_engines_end_with_the_api_process_s_handle(tmp_path: Path) -> None:
    zygote = Zygote(write_down)
    pid = zygote.fork_engine(EngineSpec.new(0, str(tmp_path)))
    zygote.close()
    wait(lambda: gone(pid) and gone(zygote.pid))


def test_a_dead_engine_is_buried_and_another_one_forked(zygote: Zygote, tmp_path: Path) -> None:
    for _ in range(3):
        pid = zygote.fork_engine(EngineSpec.new(0, str(tmp_path)))
        os.kill(pid, signal.SIGKILL)
        wait(lambda pid=pid: not psutil.pid_exists(pid))


def test_engines_outlive_a_zygote_that_is_killed_but_no_more_are_forked(
    zygote: Zygote, tmp_path: Path
) -> None:
    pid = zygote.fork_engine(EngineSpec.new(0, str(tmp_path)))
    os.kill(zygote.pid, signal.SIGKILL)
    wait(lambda: gone(zygote.pid))
    with pytest.raises(LeaderError, match=f"process {zygote.pid}, which forks them, is gone"):
        zygote.fork_engine(EngineSpec.new(0, str(tmp_path)))
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_termination_signals_are_left_to_the_api_process(zygote: Zygote, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(zygote.pid, number)
    spec = EngineSpec.new(0, str(tmp_path))
    pid = zygote.fork_engine(spec)
    wait(spec.path("written").exists)
    os.kill(pid, signal.SIGTERM)
    wait(lambda: not psutil.pid_exists(pid))
