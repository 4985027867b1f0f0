import os
import tempfile
from pathlib import Path

import pytest

from rufus_serve.cli.surroundings import ensure_home, private_folder
from rufus_serve.errors import ConfigError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("home", ["/nowhere", "/etc/passwd"])
def test_a_home_that_cannot_be_written_is_replaced(temporary: Path, home: str) -> None:
    environ = {"HOME": home}
    ensure_home(environ)
    folder = Path(environ["HOME"])
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    assert environ["USER"] == f"uid{os.getuid()}"


def test_a_user_without_passwd_entry_gets_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    environ: dict[str, str] = {}
    ensure_home(environ)
    assert Path(environ["HOME"]).is_dir()


def test_a_host_without_a_writable_folder_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(ConfigError, match="set TMPDIR"):
        ensure_home({"HOME": "/nowhere"})


def test_a_good_home_stays(temporary: Path) -> None:
    environ = {"HOME": str(temporary), "USER": "me"}
    ensure_home(environ)
    assert environ == {"HOME": str(temporary), "USER": "me"}


def test_a_stand_in_that_others_may_write_is_refused(temporary: Path) -> None:
    private_folder().chmod(0o777)
    with pytest.raises(ConfigError, match="set HOME"):
        ensure_home({"HOME": "/nowhere"})
