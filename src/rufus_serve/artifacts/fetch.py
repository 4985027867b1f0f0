"""Brings one node's artifact files to a local folder."""

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rufus_serve.artifacts.checksum import CHUNK_BYTES
from rufus_serve.artifacts.find import Found, find
from rufus_serve.artifacts.identity import Identity
from rufus_serve.artifacts.location import STORAGE_ERRORS, Location, is_remote, local_path
from rufus_serve.artifacts.manifest import (
    MANIFEST,
    ManifestFile,
    encode_manifest,
    write_atomically,
)
from rufus_serve.artifacts.verified import Verified
from rufus_serve.artifacts.verify import Progress, check_files, fault_of
from rufus_serve.errors import ArtifactError, ArtifactsUnreachable
from rufus_serve.protocol.runtime_info import ArtifactUse

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PAUSE_S = 1.0


class Fetched(NamedTuple):
    """A node's files on this host."""

    folder: Path
    use: ArtifactUse


def fetch(
    url: str, wanted: Identity, *, node_rank: int | None, cache: Path | None, threads: int,
    progress: Progress,
) -> Fetched:  # fmt: skip
    """A local folder with all files of `node_rank`, or of every node if None, each checked.

    A local `url` is used in place unless there is a `cache`. Files already there and good are
    kept; several nodes may share one cache. A file is hashed once, until it changes.

    Raises:
        ArtifactError: nothing fits, or a file is absent, damaged or cannot be brought here.
    """
    found = find(url, wanted)
    files = found.manifest.files_of(node_rank)
    verified = Verified(default_cache() / ".verified")
    if cache is None and not is_remote(url):
        folder = local_path(found.location.url)
        check_files(folder, files, threads=threads, progress=progress, verified=verified)
        return Fetched(folder, _use(files, ()))
    folder = (cache or default_cache()) / found.manifest.key
    names = ", ".join(file.path for file in files)
    _log.info("fetching to %s: %s", folder, names)
    brought = _fetch_all(
        found, files, folder, threads=threads, progress=progress, verified=verified
    )
    write_atomically(folder / MANIFEST, encode_manifest(found.manifest))
    kept = [file for file in files if file not in brought]
    return Fetched(folder, _use(kept, brought))


def default_cache() -> Path:
    """Where fetched artifacts are kept unless a setting says otherwise."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rufus-serve" / "artifacts"


def _use(kept: Sequence[ManifestFile], brought: Sequence[ManifestFile]) -> ArtifactUse:
    return ArtifactUse(
        kept_files=len(kept),
        kept_bytes=sum(file.size for file in kept),
        fetched_files=len(brought),
        fetched_bytes=sum(file.size for file in brought),
    )


def _fetch_all(
    found: Found, files: tuple[ManifestFile, ...], folder: Path, *, threads: int,
    progress: Progress, verified: Verified,
) -> list[ManifestFile]:  # fmt: skip
    """Bring what `folder` lacks; those that it lacked."""
    count = _Count(sum(file.size for file in files), progress)

    def bring(file: ManifestFile) -> bool:
        if not fault_of(folder, file, verified):
            count.add(file.size, f"kept {file.path}")
            return False
        _bring(found.location, file, folder, count)
        return True

    try:
        for file in files:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be made: {error.strerror}") from error
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return [
            file for file, brought in zip(files, pool.map(bring, files), strict=True) if brought
        ]


class _Count:
    """Adds up the bytes of all threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, size: int, detail: str) -> None:
        """Count `size` more bytes; a failed attempt takes its own back."""
        with self._lock:
            self._done += size
            self._progress(self._done, self._total, detail)


def _bring(location: Location, file: ManifestFile, folder: Path, count: _Count) -> None:
    """Copy one file, and again after an error that may pass."""
    for attempt in range(1, _ATTEMPTS + 1):
        fault = _copy(location, file, folder / file.path, count)
        if not fault:
            return
        if attempt < _ATTEMPTS:
            time.sleep(_PAUSE_S * attempt)
    raise ArtifactsUnreachable(f"{location.url}/{file.path}: {fault} ({_ATTEMPTS} attempts)")


def _copy(location: Location, file: ManifestFile, target: Path, count: _Count) -> str:
    """Copy once; what went wrong, or empty. The target is either absent, old or complete."""
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with location.open(file.path) as source, scratch.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                size += len(chunk)
                count.add(len(chunk), f"fetching {file.path}")
        if (size, digest.hexdigest()) == (file.size, file.sha256):
            scratch.replace(target)
            return ""
    except STORAGE_ERRORS as error:
        count.add(-size, f"trying again: {file.path}")
        return f"expected {file.size} bytes, cannot be copied: {error}"
    finally:
        scratch.unlink(missing_ok=True)
    count.add(-size, f"trying again: {file.path}")
    if size != file.size:
        return f"expected {file.size} bytes, found {size}"
    return f"expected sha256 {file.sha256}, found {digest.hexdigest()}"
