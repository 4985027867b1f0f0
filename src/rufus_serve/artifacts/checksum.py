"""Checksums: whole files of artifacts, samples of a checkpoint's weight files."""

import hashlib
from pathlib import Path

CHUNK_BYTES = 8 << 20
_SAMPLE_BYTES = 16 << 10
_NUM_SAMPLES = 256


def sha256_of(path: Path) -> str:
    """SHA-256 of the whole file, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 over the file's size and 256 samples, both ends included, in hex.

    Tells checkpoints apart in milliseconds whatever their size: training changes every tensor.
    It is not proof against damage; artifacts have whole checksums for that.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for index in range(_NUM_SAMPLES):
            file.seek(last * index // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
