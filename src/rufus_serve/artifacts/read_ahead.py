"""Brings files into the page cache, so that whoever loads them next waits for no disk."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from rufus_serve.artifacts.checksum import CHUNK_BYTES
from rufus_serve.artifacts.verify import Progress

_MEMORY_SHARE = 0.5
"""Of what is available: beyond it, pages read first would be gone before they are wanted."""


def read_ahead(files: Sequence[Path], *, threads: int, progress: Progress) -> int:
    """Read `files` in order until half of the available memory is filled; bytes read.

    What cannot be read is left to whoever needs it, who says so better.
    """
    sizes = dict(_that_fit(files, psutil.virtual_memory().available * _MEMORY_SHARE))
    total, done = sum(sizes.values()), 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for path, size in zip(sizes, pool.map(_read, sizes), strict=True):
            done += size
            progress(done, total, f"read {path.name}")
    return done


def _that_fit(files: Sequence[Path], room: float) -> Iterator[tuple[Path, int]]:
    for path in files:
        size = path.stat().st_size if path.is_file() else 0
        if size > room:
            return
        room -= size
        yield path, size


def _read(path: Path) -> int:
    size, buffer = 0, bytearray(CHUNK_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                size += count
    except OSError:
        return size
    return size
