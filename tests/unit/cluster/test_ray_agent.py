import stat
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray")

from rufus_serve.cluster.ray_agent import FOLDER_VARIABLE, FollowerAgent


def test_logs_go_where_no_other_user_can_be_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = (FollowerAgent("")._log_file("7").parent for _ in range(2))
    assert first != second
    for folder in (first, second):
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_folder_that_a_host_was_given_holds_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "own"))
    log = FollowerAgent("/elsewhere")._log_file("7")
    assert log == tmp_path / "own" / "follower-7.log"
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
