"""Compiled artifacts: made once, compared at each start, never trusted blindly.

Written to the documented contract, never run on a device. NxD Inference loads whatever graphs it
finds and drops the configuration it was asked for, so the two are compared here.
"""

import json
import os
from pathlib import Path
from typing import Any

from rufus_serve.artifacts.fetch import fetch
from rufus_serve.artifacts.location import is_remote, local_path
from rufus_serve.artifacts.manifest import MANIFEST
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.runtime.base import Progress
from rufus_serve.runtime.neuron import compiling

_PER_NODE = {"start_rank_id"}
_NOT_COMPILED_IN = {"_name_or_path", "transformers_version", "metadata", "neuron_config"}


def location_of(config: ServeConfig) -> str:
    """Folder or URL of artifacts as configured; empty if none is."""
    return config.artifacts.location or config.neuron.artifacts


def artifact_folder(config: ServeConfig) -> Path:
    """Where this configuration's graphs are, or will be compiled to, without a manifest."""
    if location_of(config):
        return local_path(location_of(config))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "rufus-serve" / "neuron" / config.group_hash()


def is_compiled(folder: Path) -> bool:
    """True if `folder` holds graphs and the configuration they were compiled for."""
    return (folder / "model.pt").is_file() and (folder / "neuron_config.json").is_file()


def prepare(
    application: Any, config: ServeConfig, progress: Progress, *, node_rank: int = 0
) -> Path:
    """The folder of artifacts that fit `application`, compiled now if there are none.

    Raises:
        ArtifactError: they were compiled for another configuration, or must not be compiled.
    """
    folder = _made_ahead(config, node_rank, progress) or artifact_folder(config)
    if is_compiled(folder):
        check_same(folder, json.loads(application.config.to_json_string()))
    elif config.artifacts.required or config.neuron.require_artifacts:
        raise ArtifactError(
            f"no compiled artifacts in {folder}, and artifacts.required forbids compiling "
            "now; run 'rufus-serve compile' with this configuration"
        )
    else:
        progress(0, 1, f"compiling to {folder}")
        application.compile(f"{folder}/")
        progress(1, 1, "compiled")
    return folder


def _made_ahead(config: ServeConfig, node_rank: int, progress: Progress) -> Path | None:
    """This node's files of what `rufus-serve compile` made; None if that is not configured."""
    location = location_of(config)
    if not location or not (is_remote(location) or _has_manifest(local_path(location))):
        return None
    return fetch(
        location,
        compiling.identity(config),
        node_rank=node_rank,
        cache=config.artifacts.cache,
        threads=config.artifacts.threads,
        progress=progress,
    )


def _has_manifest(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in (MANIFEST, f"*/{MANIFEST}"))


def check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise ArtifactError if the graphs in `folder` were compiled for another configuration."""
    try:
        found = json.loads((folder / "neuron_config.json").read_text())
    except ValueError as error:
        raise ArtifactError(f"{folder}/neuron_config.json is damaged: {error}") from error
    differing = differences(found, wanted)
    if differing:
        shown = "; ".join(differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ArtifactError(
            f"{folder} was compiled for another configuration: {shown}{more}; compile again, or "
            "give artifacts.location another folder"
        )


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What `found` says otherwise than `wanted`, leaving out what is not compiled in."""
    ours, theirs = wanted.get("neuron_config", {}), found.get("neuron_config", {})
    return [
        *_differing(theirs, ours, _PER_NODE),
        *_differing(found, wanted, _NOT_COMPILED_IN),
    ]


def _differing(found: dict[str, Any], wanted: dict[str, Any], but: set[str]) -> list[str]:
    names = sorted((found.keys() | wanted.keys()) - but)
    return [
        f"{name} is {found.get(name)!r}, not {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
