"""`Location`: a folder that artifacts are kept in, local or behind a URL.

URLs go through fsspec: s3:// needs the extra `s3`, others what fsspec asks for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rufus_serve.errors import ArtifactError, ArtifactsUnreachable

_FILE_URL = "file://"


class Location:
    """Read and write access to one folder; may be used by several threads."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        with _as_artifact_error(self.url):
            # Imported late: a follower that loads a plain checkpoint does not need it.
            from fsspec.core import url_to_fs

            path = self.url if is_remote(url) else str(local_path(url).absolute())
            self._fs, self._root = url_to_fs(path)

    def read(self, path: str) -> bytes | None:
        """The whole of a small file; None if there is none."""
        with _as_artifact_error(f"{self.url}/{path}"):
            try:
                return bytes(self._fs.cat_file(self._join(path)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, path: str) -> Any:
        """A file to be read from beginning to end; raises as fsspec does."""
        return self._fs.open(self._join(path), "rb")

    def folders(self) -> list[str]:
        """Names of the folders directly inside, without hidden ones."""
        with _as_artifact_error(self.url):
            try:
                found = self._fs.ls(self._root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = [Path(item["name"]).name for item in found if item["type"] == "directory"]
        return sorted(name for name in names if not name.startswith("."))

    def put(self, source: Path, path: str) -> None:
        """Copy a local file to `path`."""
        with _as_artifact_error(f"{self.url}/{path}"):
            target = self._join(path)
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), target)

    def inside(self, name: str) -> "Location":
        """The folder `name` in this one."""
        return Location(f"{self.url}/{name}")

    def _join(self, path: str) -> str:
        return f"{self._root}/{path}"


def is_remote(url: str) -> bool:
    """Whether `url` is anything but a path of this host's file systems."""
    return "://" in url and not url.startswith(_FILE_URL)


def local_path(url: str) -> Path:
    """The path that a local `url` means."""
    return Path(url.removeprefix(_FILE_URL)).expanduser()


def _errors() -> tuple[type[Exception], ...]:
    """What reading and writing may raise; S3's client has errors that are not OSErrors."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError, ValueError)
    return (OSError, ValueError, BotoCoreError)


STORAGE_ERRORS = _errors()


@contextmanager
def _as_artifact_error(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ArtifactError(
            f"{what}: {error}; for S3 install rufus-serve with the extra 's3'"
        ) from error
    except STORAGE_ERRORS as error:
        raise ArtifactsUnreachable(f"{what}: cannot be reached: {error}") from error
