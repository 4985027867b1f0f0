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
from rufus_serve.leader.zygote import Zygotes


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
def zygotes() -> Iterator[Zygotes]:
    made = Zygotes(write_down)
    yield made
    made.close()


def wait(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_each_engine_is_a_process_that_knows_its_own_spec(zygotes: Zygotes, tmp_path: Path) -> None:
    specs = [EngineSpec.new(0, str(tmp_path)) for _ in range(3)]
    pids = {zygotes.fork_engine(spec) for spec in specs}
    assert len(pids | {*zygotes.pids, os.getpid()}) == 6
    for spec in specs:
        wait(spec.path("written").exists)
        engine_id, num_threads, *_ = spec.path("written").read_text().splitlines()
        assert (engine_id, num_threads) == (spec.engine_id, "1")


def test_an_engine_holds_no_file_or_connection_of_the_api_process(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with secret.open("w"):
        zygotes = Zygotes(write_down)
    spec = EngineSpec.new(0, str(tmp_path))
    zygotes.fork_engine(spec)
    wait(spec.path("written").exists)
    inherited = spec.path("written").read_text()
    zygotes.close()
    assert str(secret) not in inherited
    assert "socket:" not in inherited


def test_engines_end_with_the_api_process_s_handle(tmp_path: Path) -> None:
    zygotes = Zygotes(write_down)
    pid = zygotes.fork_engine(EngineSpec.new(0, str(tmp_path)))
    zygotes.close()
    wait(lambda: gone(pid) and all(map(gone, zygotes.pids)))


def test_an_engine_that_fails_leaves_word_of_the_reason(tmp_path: Path) -> None:
    def fail(_: EngineSpec) -> None:
        raise ValueError("no processor of that name")

    zygotes, spec = Zygotes(fail), EngineSpec.new(0, str(tmp_path))
    zygotes.fork_engine(spec)
    wait(spec.last_word)
    assert spec.last_word() == "ValueError: no processor of that name"
    zygotes.close()


def test_a_dead_engine_is_buried_and_another_one_forked(zygotes: Zygotes, tmp_path: Path) -> None:
    for _ in range(3):
        pid = zygotes.fork_engine(EngineSpec.new(0, str(tmp_path)))
        os.kill(pid, signal.SIGKILL)
        wait(lambda pid=pid: not psutil.pid_exists(pid))


def test_engines_outlive_a_zygote_that_is_killed_and_another_zygote_takes_its_place(
    zygotes: Zygotes, tmp_path: Path
) -> None:
    engines = []
    for _ in range(4):
        first, second = zygotes.pids
        engines.append(zygotes.fork_engine(EngineSpec.new(0, str(tmp_path))))
        os.kill(first, signal.SIGKILL)
        wait(lambda second=second: len(zygotes.pids) == 2 and zygotes.pids[0] == second)
    assert not any(map(gone, engines))
    zygotes.close()
    wait(lambda: not psutil.pid_exists(zygotes.pids[1]))
    for pid in engines:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_zygote_is_replaced_also_when_clients_hold_more_than_a_thousand_files(
    zygotes: Zygotes,
) -> None:
    with contextlib.ExitStack() as files:
        for _ in range(1100):
            files.callback(os.close, os.dup(0))
        for _ in range(2):
            before = zygotes.pids
            os.kill(before[0], signal.SIGKILL)
            wait(lambda before=before: len(set(zygotes.pids) - set(before)) == 1)


def test_a_zygote_that_hangs_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rufus_serve.leader.zygote._FORK_S", 0.5)
    zygotes = Zygotes(write_down)
    stopped, other = zygotes.pids
    os.kill(stopped, signal.SIGSTOP)
    spec = EngineSpec.new(0, str(tmp_path))
    pid = zygotes.fork_engine(spec)
    wait(spec.path("written").exists)
    assert psutil.Process(pid).ppid() == other
    wait(lambda: gone(stopped) and len(zygotes.pids) == 2)
    zygotes.close()


def test_no_more_engines_are_forked_when_all_zygotes_are_killed_at_once(
    zygotes: Zygotes, tmp_path: Path
) -> None:
    for pid in zygotes.pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in zygotes.pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(LeaderError, match="the processes that fork them are gone"):
        zygotes.fork_engine(EngineSpec.new(0, str(tmp_path)))


def test_an_engine_of_a_replaced_zygote_knows_its_spec_and_holds_no_connection(
    zygotes: Zygotes, tmp_path: Path
) -> None:
    for pid in zygotes.pids:
        os.kill(pid, signal.SIGKILL)
        wait(lambda pid=pid: pid not in zygotes.pids and len(zygotes.pids) == 2)
    spec = EngineSpec.new(0, str(tmp_path))
    zygotes.fork_engine(spec)
    wait(spec.path("written").exists)
    engine_id, num_threads, *files = spec.path("written").read_text().splitlines()
    assert (engine_id, num_threads) == (spec.engine_id, "1")
    assert not [name for name in files if "socket:" in name]


def test_termination_signals_are_left_to_the_api_process(zygotes: Zygotes, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        for pid in zygotes.pids:
            os.kill(pid, number)
    spec = EngineSpec.new(0, str(tmp_path))
    pid = zygotes.fork_engine(spec)
    wait(spec.path("written").exists)
    os.kill(pid, signal.SIGTERM)
    wait(lambda: not psutil.pid_exists(pid))
