"""Compiled artifacts: made once, compared at each start, never trusted blindly.

Written to the documented contract, never run on a device. NxD Inference loads whatever graphs it
finds and drops the configuration it was asked for, so the two are compared here.
"""

import json
import os
from pathlib import Path
from typing import Any

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.runtime.base import Progress

_PER_NODE = {"start_rank_id"}
_NOT_COMPILED_IN = {"_name_or_path", "transformers_version", "metadata", "neuron_config"}


def artifact_folder(config: ServeConfig) -> Path:
    """Where this configuration's artifacts are, or will be compiled to."""
    if "://" in config.neuron.artifacts:
        raise ArtifactError(
            f"neuron.artifacts {config.neuron.artifacts} is a URL; copy it to a local folder first"
        )
    if config.neuron.artifacts:
        return Path(config.neuron.artifacts)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "rufus-serve" / "neuron" / config.group_hash()


def is_compiled(folder: Path) -> bool:
    """True if `folder` holds graphs and the configuration they were compiled for."""
    return (folder / "model.pt").is_file() and (folder / "neuron_config.json").is_file()


def prepare(application: Any, config: ServeConfig, progress: Progress) -> Path:
    """The folder of artifacts that fit `application`, compiled now if there are none.

    Raises:
        ArtifactError: they were compiled for another configuration, or must not be compiled.
    """
    folder = artifact_folder(config)
    if is_compiled(folder):
        check_same(folder, json.loads(application.config.to_json_string()))
    elif config.neuron.require_artifacts:
        raise ArtifactError(
            f"no compiled artifacts in {folder}, and neuron.require_artifacts forbids compiling "
            "now; run 'rufus-serve compile' with this configuration"
        )
    else:
        progress(0, 1, f"compiling to {folder}")
        application.compile(f"{folder}/")
        progress(1, 1, "compiled")
    return folder


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
            "give neuron.artifacts another folder"
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
