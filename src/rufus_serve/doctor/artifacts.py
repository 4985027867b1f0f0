"""Artifacts made ahead of time: are they there, for this model and group, and undamaged?"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rufus_serve.artifacts.compiled_folder import is_compiled_by_nxdi
from rufus_serve.artifacts.find import Found
from rufus_serve.artifacts.identity import Identity, differences, identify_model
from rufus_serve.artifacts.location import Location, is_remote, local_path
from rufus_serve.artifacts.manifest import MANIFEST, ManifestFile, decode_manifest
from rufus_serve.artifacts.verify import faults_of
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import ArtifactError, ModelError
from rufus_serve.units import gib

_CODE = ArtifactError.exit_code


def artifacts(context: HostContext) -> Iterator[Finding]:
    """What `rufus-serve compile` made, checked as the followers will check it."""
    say = Findings("artifacts")
    config = context.config
    location = config.artifacts.location
    if not location:
        if context.on_device and config.nodes > 1:
            yield say.error(
                f"artifacts.location is empty, with nodes {config.nodes}",
                why="every node would compile by itself, and nothing would compare the graphs",
                fix="rufus-serve compile --config FILE --out DIR, then set artifacts.location",
                code=_CODE,
            )
        elif context.on_device:
            yield say.note(
                "artifacts.location is empty: graphs are compiled at the first start",
                why="that takes 15 minutes and more, on every node",
                fix="rufus-serve compile --config FILE --out DIR, then set artifacts.location",
            )
        else:
            yield say.skipped("artifacts.location is empty")
        return
    if is_compiled_by_nxdi(location):
        yield say.ok(f"{location}: a folder that NxD Inference compiled to; it has no checksums")
        return
    try:
        found = _find(context, Location(location))
    except (ArtifactError, ModelError) as error:
        yield _error(say, str(error), f"rufus-serve compile --config FILE --out {location}")
        return
    yield from _intact(context, say, found)


def _error(say: Findings, what: str, fix: str) -> Finding:
    why = "followers check the same, and refuse to load what does not fit or is damaged"
    return say.error(what, why=why, fix=fix, code=_CODE)


def _find(context: HostContext, location: Location) -> Found:
    """The artifacts in `location` that were made from this model for this group.

    Compiled-in settings and versions are left to the runtime, which alone knows them.

    Raises:
        ArtifactError, ModelError: there are none.
    """
    model = identify_model(Path(context.config.model))
    refused = []
    for candidate in (location, *(location.inside(name) for name in location.folders())):
        data = candidate.read(MANIFEST)
        if data is None:
            continue
        manifest = decode_manifest(data, origin=f"{candidate.url}/{MANIFEST}")
        wanted: Identity = msgspec.structs.replace(
            manifest.identity,
            model=model,
            runtime=context.config.runtime,
            num_nodes=context.config.nodes,
        )
        differing = differences(manifest.identity, wanted)
        if not differing:
            return Found(candidate, manifest)
        refused.append(f"{candidate.url} was made for something else: {'; '.join(differing[:3])}")
    if refused:
        raise ArtifactError(refused[0])
    raise ArtifactError(f"{location.url}: no artifacts there")


def _intact(context: HostContext, say: Findings, found: Found) -> Iterator[Finding]:
    """Every file of every node: after a restart any node may hold any rank."""
    files, where = found.manifest.files, found.location.url
    size = gib(sum(file.size for file in files))
    if is_remote(where):
        yield say.ok(f"{where}: manifest of {len(files)} files, {size}; checked when fetched")
        return
    faults = _faults(context, local_path(where), files)
    if faults:
        more = f" (and {len(faults) - 1} more files)" if len(faults) > 1 else ""
        out = Path(where).parent
        yield _error(
            say,
            f"damaged: {faults[0]}{more}",
            f"rufus-serve compile --config FILE --out {out}, which keeps the good files",
        )
        return
    how = "sizes match" if context.quick else "checksums match"
    yield say.ok(f"{where}: {len(files)} files, {size}, {how}")


def _faults(context: HostContext, folder: Path, files: tuple[ManifestFile, ...]) -> list[str]:
    if context.quick:
        return [fault for file in files if (fault := _size_fault(folder / file.path, file.size))]
    threads = context.config.artifacts.threads
    faults = faults_of(folder, files, threads, lambda *_: None)
    return [fault for fault in faults.values() if fault]


def _size_fault(path: Path, expected: int) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return f"{path}: expected {expected} bytes, found no file"
    return "" if size == expected else f"{path}: expected {expected} bytes, found {size}"
