"""`Draft`: an artifact folder in the making, which survives being killed."""

import fcntl
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from rufus_serve import __version__
from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.artifacts.identity import Identity
from rufus_serve.artifacts.location import Location
from rufus_serve.artifacts.manifest import (
    MANIFEST,
    Manifest,
    ManifestFile,
    decode_manifest,
    encode_manifest,
    write_atomically,
)
from rufus_serve.artifacts.verify import Progress, faults_of
from rufus_serve.errors import ArtifactError

_log = logging.getLogger(__name__)

JOURNAL = "unfinished.json"
"""A manifest of the units finished so far, in the draft's folder."""


class Draft:
    """Work on one artifact folder; made by `open_draft`.

    Units are finished one by one; what a killed process finished is found again. The folder
    gets its name, the identity's key, in one rename once all is done.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._root = root
        self._manifest = manifest
        self.folder = draft_folder(root, manifest.key)

    def has(self, unit: str) -> bool:
        """Whether `unit` is finished, its files good."""
        return any(file.unit == unit for file in self._manifest.files)

    def finish(self, unit: str, paths: Mapping[str, Sequence[int]]) -> None:
        """Record `unit`'s files: relative path to the node ranks that load it."""
        made = [
            ManifestFile(
                path=path,
                size=(self.folder / path).stat().st_size,
                sha256=sha256_of(self.folder / path),
                node_ranks=tuple(ranks),
                unit=unit,
            )
            for path, ranks in sorted(paths.items())
        ]
        kept = [file for file in self._manifest.files if file.path not in paths]
        self._manifest = msgspec.structs.replace(self._manifest, files=(*kept, *made))
        write_atomically(self.folder / JOURNAL, encode_manifest(self._manifest))

    def publish(self) -> Path:
        """Name the finished folder; its path."""
        self._remove_strays()
        write_atomically(self.folder / MANIFEST, encode_manifest(self._manifest))
        (self.folder / JOURNAL).unlink(missing_ok=True)
        target = self._root / self._manifest.key
        self.folder.rename(target)
        return target

    def _remove_strays(self) -> None:
        """Delete what no unit recorded: halves of files, from a process that was killed."""
        known = {self.folder / file.path for file in self._manifest.files}
        for path in [
            path for path in self.folder.rglob("*") if path.is_file() or path.is_symlink()
        ]:
            if path not in known and path.name != JOURNAL:
                path.unlink()
        for folder in sorted(path for path in self.folder.rglob("*") if path.is_dir())[::-1]:
            if not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def open_draft(
    root: Path, identity: Identity, *, threads: int, progress: Progress
) -> Iterator[Draft | None]:
    """The draft of `identity` in `root`; None if it is already complete and good.

    Files of a finished folder or an earlier draft are checked, and bad ones made again with
    their whole unit.

    Raises:
        ArtifactError: another process works on it, or `root` cannot be written.
    """
    with _locked(root, identity.key):
        target, folder = root / identity.key, draft_folder(root, identity.key)
        manifest = _read(target / MANIFEST)
        if manifest is not None:
            bad = _bad_units(target, manifest, threads, progress)
            if not bad:
                yield None
                return
            # A damaged folder becomes a draft again, so that good units are kept.
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
            (folder / MANIFEST).unlink()
        else:
            shutil.rmtree(target, ignore_errors=True)
            manifest = _read(folder / JOURNAL) or Manifest(
                identity=identity, files=(), made_by=__version__
            )
            bad = _bad_units(folder, manifest, threads, progress)
        folder.mkdir(parents=True, exist_ok=True)
        good = tuple(file for file in manifest.files if file.unit not in bad)
        yield Draft(root, msgspec.structs.replace(manifest, files=good, made_by=__version__))


def upload(folder: Path, url: str, *, progress: Progress) -> str:
    """Copy the finished artifacts in `folder` to `url`/KEY, the manifest last; where they are.

    Raises:
        ArtifactError: `url` cannot be written.
    """
    manifest = decode_manifest((folder / MANIFEST).read_bytes(), origin=str(folder / MANIFEST))
    target = Location(url).inside(manifest.key)
    total, done = sum(file.size for file in manifest.files), 0
    for file in manifest.files:
        target.put(folder / file.path, file.path)
        done += file.size
        progress(done, total, f"copied {file.path}")
    target.put(folder / MANIFEST, MANIFEST)
    return target.url


def draft_folder(root: Path, key: str) -> Path:
    """Where artifacts of `key` are made, beside their final place."""
    return root / f".{key}.partial"


def _bad_units(folder: Path, manifest: Manifest, threads: int, progress: Progress) -> set[str]:
    faults = faults_of(folder, manifest.files, threads, progress)
    return {file.unit for file in manifest.files if faults[file.path]}


def _read(path: Path) -> Manifest | None:
    """The manifest at `path`; None if it is absent or damaged, as all can be made again."""
    try:
        return decode_manifest(path.read_bytes(), origin=str(path))
    except (OSError, ArtifactError):
        return None


@contextmanager
def _locked(root: Path, key: str) -> Iterator[None]:
    """Hold the lock of `key`; the kernel lets go of it when the process ends, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{key}.lock").open("a")
    except OSError as error:
        raise ArtifactError(f"{root}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"{root}/{key} is being made by another process; wait for it"
            ) from error
        except OSError:
            # Some shared file systems have no locks; there, the operator sees to it.
            _log.warning("%s has no file locks: run one 'rufus-serve compile' at a time", root)
        yield
