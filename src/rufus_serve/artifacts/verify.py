"""Checks files against their manifest."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rufus_serve.artifacts.checksum import sha256_of
from rufus_serve.artifacts.manifest import ManifestFile
from rufus_serve.artifacts.verified import FileState, Verified
from rufus_serve.errors import ArtifactError

Progress = Callable[[int, int, str], None]
"""Called with (done bytes, total bytes, detail) from any thread."""


def fault_of(folder: Path, file: ManifestFile, verified: Verified | None = None) -> str:
    """What is wrong with `file` in `folder`, expected and found; empty if it is good.

    A file that `verified` knows is not read again; one found good is noted there.
    """
    path = folder / file.path
    try:
        state = FileState.of(path)
        if state.size != file.size:
            return f"{path}: expected {file.size} bytes, found {state.size}"
        if verified is not None and verified.knows(path, file.sha256):
            return ""
        found = sha256_of(path)
    except FileNotFoundError:
        return f"{path}: expected {file.size} bytes, found no file"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    if found != file.sha256:
        return f"{path}: expected sha256 {file.sha256}, found {found}"
    if verified is not None:
        verified.note(path, file.sha256, state)
    return ""


def check_files(
    folder: Path,
    files: Sequence[ManifestFile],
    *,
    threads: int,
    progress: Progress,
    verified: Verified,
) -> None:
    """Check all of `files`, several at a time, but those that `verified` knows.

    Raises:
        ArtifactError: naming each bad file with what was expected and found.
    """
    found = faults_of(folder, files, threads, progress, verified)
    faults = [fault for fault in found.values() if fault]
    if faults:
        raise ArtifactError(
            "artifacts are damaged: " + "; ".join(faults) + "; run 'rufus-serve compile' again, "
            "which keeps the good files"
        )


def faults_of(
    folder: Path,
    files: Iterable[ManifestFile],
    threads: int,
    progress: Progress,
    verified: Verified | None = None,
) -> dict[str, str]:
    """By path, the fault of each file; empty if it is good."""
    files = tuple(files)
    total, done, faults = sum(file.size for file in files), 0, {}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        checks = pool.map(lambda file: fault_of(folder, file, verified), files)
        for file, fault in zip(files, checks, strict=True):
            faults[file.path] = fault
            done += file.size
            progress(done, total, f"checked {file.path}")
    return faults
