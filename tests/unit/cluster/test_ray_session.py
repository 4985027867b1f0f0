"""Real processes: what Ray starts is all in one POSIX session."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from rufus_serve.cluster.ray_session import RaySession

pytestmark = pytest.mark.timeout(30)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def read_pid(path: Path) -> int:
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    return int(path.read_text())


def test_only_its_owner_may_enter_the_folder(tmp_path):
    session = RaySession.in_new_folder(tmp_path)
    assert stat.S_IMODE(session.folder.stat().st_mode) == 0o700
    session.clear()


def test_a_folder_too_deep_for_unix_sockets_is_not_used(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    session = RaySession.in_new_folder(deep)
    assert session.folder.parent == Path(tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    shortest = RaySession.in_new_folder(deep)
    assert shortest.folder.parent == Path("/tmp")
    for each in (session, shortest):
        each.clear()
        assert not each.folder.exists()


def test_what_its_processes_started_ends_with_it_even_if_their_parent_is_gone(tmp_path):
    session, note = RaySession.in_new_folder(tmp_path), tmp_path / "pid"
    parent = session.start(["sh", "-c", f"sleep 60 & echo $! > {note}; exit 0"])
    child = read_pid(note)
    parent.wait()
    session.clear()
    assert is_gone(child)
    assert not session.folder.exists()
    session.clear()


def test_what_made_a_session_of_its_own_is_spared(tmp_path):
    session, note = RaySession.in_new_folder(tmp_path), tmp_path / "pid"
    parent = session.start(["sh", "-c", f"setsid sh -c 'echo $$ > {note}; exec sleep 60' & wait"])
    spared = read_pid(note)
    session.clear()
    parent.wait()
    assert psutil.Process(spared).is_running()
    psutil.Process(spared).kill()


def test_files_stay_if_they_are_to_be_kept(tmp_path):
    session = RaySession.in_new_folder(tmp_path)
    (session.folder / "log").touch()
    session.clear(keep_files=True)
    assert (session.folder / "log").exists()
    session.clear()


def test_a_process_within_the_session_clears_it_and_goes_on(tmp_path):
    script = (
        "import os, pathlib, subprocess, sys\n"
        "from rufus_serve.cluster.ray_session import RaySession\n"
        "session = RaySession(pathlib.Path(sys.argv[1]), session_id=os.getsid(0))\n"
        "child = session.start(['sleep', '60'])\n"
        "assert os.getsid(child.pid) == os.getsid(0)\n"
        "session.clear()\n"
        "print(child.wait())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ray")],
        capture_output=True, text=True, check=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "-9\n"
