"""A folder that NxD Inference compiled to by itself: no manifest, no checksums."""

from rufus_serve.artifacts.location import is_remote, local_path
from rufus_serve.artifacts.manifest import MANIFEST

GRAPH, CONFIG = "model.pt", "neuron_config.json"


def is_compiled_by_nxdi(location: str) -> bool:
    """Whether `location` is such a folder on this host."""
    if is_remote(location):
        return False
    folder = local_path(location)
    if (folder / MANIFEST).exists():
        return False
    return all((folder / name).is_file() for name in (GRAPH, CONFIG))
