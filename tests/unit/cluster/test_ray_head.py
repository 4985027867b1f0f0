"""When a Ray head counts as ready; the process is a stand-in that says what Ray says."""

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from rufus_serve.cluster import ray_head
from rufus_serve.cluster.ray_head import RayHead
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.errors import ClusterError

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def session(tmp_path: Path) -> RaySession:
    return RaySession.in_new_folder(tmp_path)


def head_that_does(script: str, session: RaySession, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    monkeypatch.setattr(ray_head, "ray_command", lambda *_, **__: [sys.executable, "-c", script])
    return RayHead(address="127.0.0.1", port=0, resources="{}", session=session)


def test_it_is_ready_once_its_address_is_known_too(session, monkeypatch) -> None:
    says = "import time; print('Ray runtime started.', flush=True); time.sleep(60)"
    head = head_that_does(says, session, monkeypatch)
    ready = threading.Thread(target=head.wait_ready)
    ready.start()
    while "Ray runtime started" not in head._text():
        time.sleep(0.01)
    ready.join(3 * ray_head._POLL_S)
    assert ready.is_alive()
    session.ray_folder.mkdir(exist_ok=True)
    (session.ray_folder / "ray_current_cluster").write_text("127.0.0.1:7\n")
    ready.join(10)
    assert head.address == "127.0.0.1:7"
    head.stop()


def test_one_that_ends_tells_its_last_words(session, monkeypatch) -> None:
    head = head_that_does("raise SystemExit('no port is free')", session, monkeypatch)
    with pytest.raises(ClusterError, match="no port is free"):
        head.wait_ready()


def test_one_whose_raylet_ended_is_at_its_end(session, monkeypatch, tmp_path) -> None:
    """As `ray start` goes on without a raylet that ended in order."""
    raylet = tmp_path / "raylet"
    shutil.copy(shutil.which("sleep"), raylet)
    says = f"import subprocess; subprocess.run([{str(raylet)!r}, '2']); import time; time.sleep(60)"
    head = head_that_does(says, session, monkeypatch)
    while not session.has_raylet():
        time.sleep(0.01)
    assert head.wait() == "its raylet is gone"
    assert head._process.poll() is None
    head.stop()
