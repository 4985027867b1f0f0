"""Artifacts of a few bytes, for tests of every kind of store."""

from pathlib import Path

from rufus_serve.artifacts.draft import open_draft
from rufus_serve.artifacts.identity import Identity, ModelIdentity, WeightFile

NUM_NODES = 3


def identity(*, fingerprint: str = "f0", num_nodes: int = NUM_NODES) -> Identity:
    weights = (WeightFile(name="model.safetensors", size=1, fingerprint=fingerprint),)
    return Identity(
        model=ModelIdentity(config_sha256="c0", weights=weights),
        runtime="cpu",
        num_nodes=num_nodes,
        layout=1,
    )


def content(unit: str) -> bytes:
    return f"content of {unit} ".encode() * 1000


def nothing(*_: object) -> None:
    """Progress that nobody watches."""


def make(root: Path, wanted: Identity | None = None) -> Path:
    """Make artifacts of one file for all nodes and one for each."""
    wanted = wanted or identity()
    with open_draft(root, wanted, threads=2, progress=nothing) as draft:
        if draft is None:
            return root / wanted.key
        units: dict[str, list[int]] = {"all": []}
        units |= {f"node-{rank}": [rank] for rank in range(wanted.num_nodes)}
        for unit, ranks in units.items():
            if draft.has(unit):
                continue
            path = draft.folder / "files" / unit
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(unit))
            draft.finish(unit, {f"files/{unit}": ranks})
        return draft.publish()
