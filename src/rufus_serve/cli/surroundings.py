"""What the command's process and all it starts take from their surroundings, set right once."""

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from rufus_serve.errors import ConfigError


def ensure_home(environ: MutableMapping[str, str]) -> None:
    """Give us and our children a home and a user's name, before anything else looks for them.

    Containers run users that have no passwd entry and no home that can be written, for which
    torch, vLLM and Ray fail in ways of their own.

    Raises:
        ConfigError: there is no home, and its stand-in belongs to someone else.
    """
    if not _is_writable(environ.get("HOME") or _passwd_home()):
        environ["HOME"] = str(private_folder())
    if not any(environ.get(name) for name in ("LOGNAME", "USER")):
        environ["USER"] = f"uid{os.getuid()}"


def keep_folder_off_import_path(environ: MutableMapping[str, str]) -> None:
    """Let no `vllm/` or `queue.py` in the working directory shadow our children's packages."""
    environ["PYTHONSAFEPATH"] = "1"


def private_folder() -> Path:
    """A folder of this user's in the temporary directory, made if need be.

    Raises:
        ConfigError: someone else made it first, or others may write in it; or there is no
            temporary directory.
    """
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(
            f"temporary files can be written nowhere ({error.strerror}); mount a writable /tmp, or "
            "set TMPDIR to a folder that can be written"
        ) from error
    folder = Path(temporary) / f"rufus-serve-home-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"HOME cannot be written, and {folder} belongs to another user or lets others write; "
            "set HOME to a folder of your own"
        )
    return folder


def _passwd_home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:
        return ""


def _is_writable(folder: str) -> bool:
    return bool(folder) and Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)
