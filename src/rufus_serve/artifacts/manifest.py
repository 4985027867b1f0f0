"""`Manifest`: every file of an artifact folder, with size, checksum and the nodes it is for."""

import os
import uuid
from pathlib import Path, PurePosixPath

import msgspec

from rufus_serve.artifacts.identity import Identity
from rufus_serve.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    path: str
    """Relative to the artifact folder, with forward slashes."""
    size: int
    sha256: str
    node_ranks: tuple[int, ...] = ()
    """Nodes that load it; empty: all."""
    unit: str = ""
    """The step of the work that made it; done again as a whole."""

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"path {self.path!r} leaves the artifact folder")

    def is_for(self, node_rank: int) -> bool:
        """Whether node `node_rank` loads it."""
        return not self.node_ranks or node_rank in self.node_ranks


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All files of one artifact folder; it is written last, so a folder with one is complete."""

    identity: Identity
    files: tuple[ManifestFile, ...]
    made_by: str
    """Version of rufus-serve; told, not compared."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """Name of the artifact folder."""
        return self.identity.key

    def files_of(self, node_rank: int | None) -> tuple[ManifestFile, ...]:
        """The files that `node_rank` loads; all if None."""
        return tuple(file for file in self.files if node_rank is None or file.is_for(node_rank))


class _Version(msgspec.Struct):
    schema_version: int


def encode_manifest(manifest: Manifest) -> bytes:
    """`manifest` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, *, origin: str) -> Manifest:
    """The manifest in `data`; `origin` names it in errors.

    Raises:
        ArtifactError: it is damaged, or of another version of this format.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version == SCHEMA_VERSION:
            return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArtifactError(
            f"{origin} is damaged: {error}; remove its folder and run 'rufus-serve compile'"
        ) from error
    raise ArtifactError(
        f"{origin} has schema version {version}, this rufus-serve reads {SCHEMA_VERSION}; "
        "run 'rufus-serve compile' again"
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` is, at any moment, absent, as before, or complete."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
