"""Finds the artifacts that fit, and says field by field why others do not."""

from typing import NamedTuple

from rufus_serve.artifacts.identity import Identity, differences
from rufus_serve.artifacts.location import Location
from rufus_serve.artifacts.manifest import MANIFEST, Manifest, decode_manifest
from rufus_serve.errors import ArtifactError

_SHOWN = 6


class Found(NamedTuple):
    """An artifact folder and its manifest."""

    location: Location
    manifest: Manifest


def find(url: str, wanted: Identity) -> Found:
    """The artifacts in `url` that fit `wanted`.

    `url` is one artifact folder, or a folder of several.

    Raises:
        ArtifactError: there are none, or all were made from or for something else.
    """
    location = Location(url)
    manifest = _manifest_in(location)
    if manifest is not None:
        _refuse_other(location, manifest, wanted)
        return Found(location, manifest)
    return _find_among(location, wanted)


def _find_among(location: Location, wanted: Identity) -> Found:
    names = location.folders()
    # The exact address first: the others need not be read then.
    exact = [wanted.key] if wanted.key in names else []
    candidates = _candidates(location, exact) or _candidates(location, names)
    fitting = [found for found in candidates if not differences(found.manifest.identity, wanted)]
    if len(fitting) > 1:
        keys = ", ".join(found.manifest.key for found in fitting)
        raise ArtifactError(
            f"{location.url}: {len(fitting)} artifacts fit ({keys}), as there are no weights "
            "here to tell them apart; name one of them with artifacts.location"
        )
    if fitting:
        return fitting[0]
    if not candidates:
        raise ArtifactError(
            f"{location.url}: no artifacts there; make them with 'rufus-serve compile'"
        )
    nearest = min(candidates, key=lambda found: len(differences(found.manifest.identity, wanted)))
    _refuse_other(nearest.location, nearest.manifest, wanted)
    raise AssertionError(nearest)


def _candidates(location: Location, names: list[str]) -> list[Found]:
    inside = [location.inside(name) for name in names]
    read = [(folder, _manifest_in(folder)) for folder in inside]
    return [Found(folder, manifest) for folder, manifest in read if manifest is not None]


def _manifest_in(location: Location) -> Manifest | None:
    data = location.read(MANIFEST)
    if data is None:
        return None
    return decode_manifest(data, origin=f"{location.url}/{MANIFEST}")


def _refuse_other(location: Location, manifest: Manifest, wanted: Identity) -> None:
    found = differences(manifest.identity, wanted)
    if not found:
        return
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ArtifactError(
        f"{location.url} was made from or for something else: {'; '.join(found[:_SHOWN])}{more}; "
        "make artifacts for this configuration with 'rufus-serve compile'"
    )
