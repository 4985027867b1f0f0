"""Where a node's graphs and shards come from: made ahead of time, or compiled now.

Written to the documented contract, never run on a device. NxD Inference loads whatever graphs it
finds and drops the configuration it was asked for, so the two are compared here.
"""

import json
import time
from pathlib import Path
from typing import Any

from rufus_serve.artifacts.compiled_folder import CONFIG, GRAPH, is_compiled_by_nxdi
from rufus_serve.artifacts.fetch import Fetched, default_cache, fetch
from rufus_serve.artifacts.location import local_path
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ArtifactError
from rufus_serve.model.weight_files import files_at_hand
from rufus_serve.protocol.runtime_info import ArtifactUse
from rufus_serve.runtime.base import Progress
from rufus_serve.runtime.neuron.compiling import model_identity, shards_of
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.quantizing import PATH_FIELD, quantize_checkpoint

_PER_NODE = {"start_rank_id", PATH_FIELD}
_NOT_COMPILED_IN = {
    "_name_or_path", "transformers_version", "metadata", "neuron_config", "fused_spec_config",
}  # fmt: skip


def prepare(
    model: NeuronModel, application: Any, config: ServeConfig, progress: Progress
) -> Fetched:
    """A folder of graphs and shards that fit `application`.

    Raises:
        ArtifactError: they were made for another configuration, or must not be made now.
    """
    location = config.artifacts.location
    if location and not is_compiled_by_nxdi(location):
        folder, use = _fetch(location, model, config, progress)
    else:
        folder, use = local_path(location) if location else _own_folder(model), ArtifactUse()
        if not is_compiled_by_nxdi(str(folder)):
            _refuse_to_compile(config)
            use = ArtifactUse(compile_s=_compile(application, folder, progress))
    check_same(folder, json.loads(application.config.to_json_string()))
    return Fetched(folder, use)


def _compile(application: Any, folder: Path, progress: Progress) -> float:
    """The seconds that it took."""
    began = time.monotonic()
    progress(0, 1, f"compiling to {folder}")
    quantize_checkpoint(application)
    application.compile(f"{folder}/")
    return time.monotonic() - began


def files_to_load(model: NeuronModel, folder: Path) -> list[Path]:
    """What one node reads when its application is loaded from `folder`."""
    shards = [folder / path for path in shards_of(model)]
    checkpoints = [file for each in model.folders for file in files_at_hand(each)]
    return [folder / GRAPH, *(shards or checkpoints)]


def _own_folder(model: NeuronModel) -> Path:
    """Where this node keeps what it compiled, in the cache of all artifacts."""
    key = model_identity(model).key
    return default_cache() / f"{key}-node-{model.topology.node_rank}"


def _refuse_to_compile(config: ServeConfig) -> None:
    if config.artifacts.required:
        raise ArtifactError(
            "artifacts are required but artifacts.location is empty; run 'rufus-serve compile' "
            "and name its output"
        )
    if config.nodes > 1:
        raise ArtifactError(
            f"nodes {config.nodes} without artifacts: every node would compile for hours by "
            "itself, and nothing would compare what came of it; run 'rufus-serve compile' once "
            "and name its output as artifacts.location"
        )


def _fetch(location: str, model: NeuronModel, config: ServeConfig, progress: Progress) -> Fetched:
    return fetch(
        location,
        model_identity(model),
        node_rank=model.topology.node_rank,
        cache=config.artifacts.cache,
        threads=config.artifacts.threads,
        progress=progress,
    )


def check_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise ArtifactError if the graphs in `folder` were compiled for another configuration."""
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / CONFIG} cannot be read: {error}") from error
    differing = differences(found, wanted)
    if differing:
        shown = "; ".join(differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ArtifactError(
            f"{folder} was compiled for another configuration: {shown}{more}; compile again, or "
            "name another folder"
        )


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What `found` says otherwise than `wanted`, leaving out what is not compiled in."""
    drafts = _differing_models(_draft_of(found), _draft_of(wanted))
    return [*_differing_models(found, wanted), *(f"the draft's {each}" for each in drafts)]


def _differing_models(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    ours, theirs = wanted.get("neuron_config", {}), found.get("neuron_config", {})
    return [
        *_differing(theirs, ours, _PER_NODE),
        *_differing(found, wanted, _NOT_COMPILED_IN),
    ]


def _draft_of(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the draft model; empty without one. Where it lies is not compiled in."""
    draft: dict[str, Any] = (config.get("fused_spec_config") or {}).get("draft_config") or {}
    return draft


def _differing(found: dict[str, Any], wanted: dict[str, Any], but: set[str]) -> list[str]:
    names = sorted((found.keys() | wanted.keys()) - but)
    return [
        f"{name} is {found.get(name)!r}, not {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
