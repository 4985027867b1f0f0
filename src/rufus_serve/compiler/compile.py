"""`compile_artifacts`: makes what a configuration needs, and puts it where followers find it."""

from collections.abc import Callable

from rufus_serve.artifacts.draft import Draft, open_draft, upload
from rufus_serve.artifacts.fetch import default_cache
from rufus_serve.artifacts.location import is_remote, local_path
from rufus_serve.compiler.builder import Builder
from rufus_serve.compiler.room import check_room
from rufus_serve.config.schema import ServeConfig

StageProgress = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, detail)."""


def compile_artifacts(
    config: ServeConfig, out: str, *, force: bool, progress: StageProgress
) -> str:
    """Make the artifacts of `config` in `out`, a folder or URL; where they are.

    What an earlier, interrupted run finished is kept. Artifacts for a URL are made in the local
    cache first.

    Raises:
        ArtifactError: they cannot be made; the message says why.
    """
    builder = make_builder(config)
    cache = config.artifacts.cache or default_cache()
    root = cache if is_remote(out) else local_path(out).absolute()
    identity = builder.identity()
    checked = _stage(progress, "checking")
    threads = config.artifacts.threads
    with open_draft(root, identity, threads=threads, progress=checked) as draft:
        if draft is not None:
            if not force:
                check_room(builder.need(), root)
            _build(builder, draft, progress)
            draft.publish()
    folder = root / identity.key
    if is_remote(out):
        return upload(folder, out, progress=_stage(progress, "copying"))
    return str(folder)


def make_builder(config: ServeConfig) -> Builder:
    """The builder of `config.runtime`."""
    if config.runtime == "neuron":
        from rufus_serve.compiler.neuron_builder import NeuronBuilder

        return NeuronBuilder(config)
    from rufus_serve.compiler.cpu_builder import CpuBuilder

    return CpuBuilder(config)


def _build(builder: Builder, draft: Draft, progress: StageProgress) -> None:
    for unit in builder.units():
        if draft.has(unit):
            progress(unit, 1, 1, "kept")
            continue
        draft.finish(unit, builder.build(unit, draft.folder, _stage(progress, unit)))


def _stage(progress: StageProgress, stage: str) -> Callable[[int, int, str], None]:
    return lambda done, total, detail: progress(stage, done, total, detail)
