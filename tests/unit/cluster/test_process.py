"""Real child processes: a tiny script stands in for the follower."""

import os
import queue
import signal
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rufus_serve.cluster.base import FollowerExit
from rufus_serve.cluster.local import LocalCluster
from rufus_serve.cluster.process import AdoptedProcess, FollowerProcess, interpreter_of, is_follower
from rufus_serve.errors import RufusError
from rufus_serve.protocol.specs import FollowerSpec

pytestmark = pytest.mark.timeout(30)


def spec(follower_id: str = "0.1") -> FollowerSpec:
    return FollowerSpec(
        config={"model": "m"},
        node_rank=0,
        follower_id=follower_id,
        control_endpoint="tcp://127.0.0.1:1",
        token="t0ken",
    )


@pytest.fixture
def script(tmp_path: Path):
    """Makes an interpreter that runs a shell script in place of the follower."""

    def make(body: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


class Exits(queue.Queue[FollowerExit]):
    def next(self) -> FollowerExit:
        return self.get(timeout=20)


def test_the_spec_goes_through_a_pipe_and_the_exit_code_comes_back(script, tmp_path):
    exits, log = Exits(), tmp_path / "log"
    python = script('read -r line; echo "$2 $line" >&2; exit 7')
    FollowerProcess(spec(), python=python, log_file=log, on_exit=exits.put)
    news = exits.next()
    assert (news.follower_id, news.code) == ("0.1", 7)
    assert log.read_text().startswith("rufus_serve.follower {")
    assert '"token":"t0ken"' in log.read_text()


def test_the_secret_is_neither_in_the_command_line_nor_in_the_environment(script):
    exits = Exits()
    process = FollowerProcess(spec(), python=script("read -r a; sleep 60; :"), on_exit=exits.put)
    child = psutil.Process(process.pid)
    assert "t0ken" not in " ".join(child.cmdline())
    assert "t0ken" not in " ".join(child.environ().values())
    process.kill()
    exits.next()


def test_a_killed_process_is_told_with_its_signal(script):
    exits = Exits()
    process = FollowerProcess(spec(), python=script("read -r a; sleep 60; :"), on_exit=exits.put)
    process.kill()
    news = exits.next()
    assert news.code == -signal.SIGKILL
    assert news.reason == "killed by signal 9"
    process.kill()


def test_a_stopped_process_can_be_killed(script):
    exits = Exits()
    process = FollowerProcess(spec(), python=script("read -r a; sleep 60; :"), on_exit=exits.put)
    os.kill(process.pid, signal.SIGSTOP)
    process.kill()
    assert exits.next().code == -signal.SIGKILL


def test_what_a_follower_started_ends_with_it(script, tmp_path):
    exits, log = Exits(), tmp_path / "log"
    python = script("read -r a; sleep 60 & echo $! >&2; exit 3")
    FollowerProcess(spec(), python=python, log_file=log, on_exit=exits.put)
    assert exits.next().code == 3
    left = int(log.read_text())
    for _ in range(200):
        if not psutil.pid_exists(left) or psutil.Process(left).status() == "zombie":
            return
        signal.sigtimedwait([], 0.02)
    raise AssertionError("the follower's child still runs")


def test_what_a_follower_wrote_down_is_the_reason(script, tmp_path):
    exits, log = Exits(), tmp_path / "follower-0.1.log"
    (tmp_path / "follower-0.1.cause").write_text("of another group's follower")
    python = script(f"read -r line; printf 'no weights' > {tmp_path}/follower-0.1.cause; exit 3")
    FollowerProcess(spec(), python=python, log_file=log, on_exit=exits.put)
    assert exits.next().reason == "exited with 3: no weights"


def test_without_an_error_in_the_log_its_last_line_is_the_reason(script, tmp_path):
    exits = Exits()
    python = script('echo "Traceback" >&2; echo "ModuleNotFoundError: torch" >&2; exit 1')
    FollowerProcess(spec(), python=python, log_file=tmp_path / "log", on_exit=exits.put)
    news = exits.next()
    assert news.reason == "exited with 1: ModuleNotFoundError: torch"
    assert news.last_words.endswith("wrote last:\n  Traceback\n  ModuleNotFoundError: torch")


def test_only_the_last_lines_are_kept(script, tmp_path):
    exits = Exits()
    python = script('i=0; while [ $i -lt 100 ]; do echo "line $i" >&2; i=$((i+1)); done')
    FollowerProcess(spec(), python=python, log_file=tmp_path / "log", on_exit=exits.put)
    lines = exits.next().log_tail.splitlines()
    assert (lines[0], lines[-1]) == ("line 60", "line 99")


def test_an_earlier_followers_lines_in_the_same_file_are_not_told_as_its_own(script, tmp_path):
    exits, log = Exits(), tmp_path / "log"
    log.write_text("follower ERROR of last week\n")
    FollowerProcess(spec(), python=script("exit 7"), log_file=log, on_exit=exits.put)
    assert exits.next().log_tail == ""


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(RufusError, match=r"cluster\.python '/no/python'"):
        FollowerProcess(spec(), python="/no/python", on_exit=print)


def test_ray_settings_do_not_reach_the_follower(script, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ray secret")
    exits, log = Exits(), tmp_path / "log"
    FollowerProcess(spec(), python=script("env >&2"), log_file=log, on_exit=exits.put)
    exits.next()
    assert "ray secret" not in log.read_text()


def test_an_adopted_process_is_watched_and_killed_though_it_is_not_our_child(script):
    exits, adopted_exits = Exits(), Exits()
    started = FollowerProcess(spec(), python=script("read -r a; sleep 60; :"), on_exit=exits.put)
    adopted = AdoptedProcess("0.9", started.pid, on_exit=adopted_exits.put)
    adopted.kill()
    assert exits.next().code == -signal.SIGKILL
    assert adopted_exits.next().follower_id == "0.9"
    adopted.kill()


def test_a_local_cluster_tells_each_end_once_and_kills_what_still_runs(script, tmp_path):
    exits = Exits()
    cluster = LocalCluster(slots=2, python=script("read -r a; sleep 60; :"), log_dir=tmp_path)
    cluster.start(exits.put)
    cluster.launch(spec("0.1"))
    cluster.launch(spec("1.2"))
    cluster.kill("1.2")
    assert exits.next().follower_id == "1.2"
    cluster.kill("1.2")
    cluster.kill("unknown")
    cluster.stop()
    assert exits.next().follower_id == "0.1"
    cluster.stop()
    assert exits.empty()


def test_a_released_cluster_leaves_its_followers_running(script, tmp_path):
    exits = Exits()
    cluster = LocalCluster(slots=1, python=script("read -r a; sleep 60; :"), log_dir=tmp_path)
    cluster.start(exits.put)
    cluster.launch(spec("0.1"))
    cluster.release()
    cluster.stop()
    assert exits.empty()
    cluster.kill("0.1")
    assert exits.next().code == -signal.SIGKILL


def test_python_of_this_environment_is_the_default(tmp_path):
    exits = Exits()
    process = FollowerProcess(spec(), log_file=tmp_path / "log", on_exit=exits.put)
    assert psutil.Process(process.pid).exe() == str(Path(sys.executable).resolve())
    process.kill()
    exits.next()


def test_an_environment_of_the_same_python_does_not_see_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/leader/site-packages")
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.symlink_to(Path(sys.executable).resolve())
    assert "PYTHONPATH" not in interpreter_of(str(other))[1]
    assert interpreter_of(sys.executable)[1]["PYTHONPATH"] == "/leader/site-packages"


def test_a_follower_is_known_though_its_command_line_is_not_there_yet(monkeypatch):
    command_lines = [[], [], ["python", "-m", "rufus_serve.follower"]]
    stand_in = SimpleNamespace(cmdline=lambda: command_lines.pop(0))
    monkeypatch.setattr("rufus_serve.cluster.process.psutil.Process", lambda _: stand_in)
    assert is_follower(7)
    command_lines.extend([["python", "-m", "http.server"]])
    assert not is_follower(7)
