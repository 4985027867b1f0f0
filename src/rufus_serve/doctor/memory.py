"""Host memory, disk and shared memory for compiling and loading; the sizes are `plan`'s."""

from collections.abc import Iterator

from rufus_serve.artifacts.fetch import default_cache
from rufus_serve.artifacts.location import is_remote
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.meminfo import memory_available, memory_bound
from rufus_serve.doctor.topology import device_plan
from rufus_serve.errors import ArtifactError, ConfigError, FollowerError, ModelError
from rufus_serve.units import GIB, gib

_LEADER_BYTES = 2 * GIB
_FOLLOWER_BYTES = GIB
"""Python, torch and vLLM, without weights; assumptions."""
_GRAPH_FILES_BYTES = 2 * GIB
_OBJECT_STORE_BYTES = 80_000_000
"""Ray's object store, as we start it."""
_SLOT_BYTES = 2 << 20
"""Shared memory of one follower's collectives, both halves."""
_SHM = "/dev/shm"  # noqa: S108 - the file system itself
_SHM_FREE_NEURON = GIB
_SMALL_TMP_SHARE = 0.05
"""Ray refuses to spill objects once its disk is this close to full."""


def host_memory(context: HostContext) -> Iterator[Finding]:
    """Memory for this host's followers, and for the leader if it is here."""
    say = Findings("host memory")
    need, reason = _needed_memory(context)
    if not need:
        yield say.skipped(reason)
        return
    bound, available = memory_bound(context.system), memory_available(context.system)
    what = f"about {gib(need)} are needed ({reason}); "
    why = "the kernel kills a process that runs out of memory, without a message"
    compiles = context.on_device and not context.config.artifacts.location
    fix = (
        "run `rufus-serve compile` on a larger host, and set artifacts.location"
        if compiles
        else "use a larger host, or more nodes"
    )
    if need > bound:
        yield say.error(
            f"{what}this host, or container, has {gib(bound)}",
            why=why,
            fix=fix,
            code=FollowerError.exit_code,
        )
    elif need > available and not context.placement.served_by:
        yield say.warning(
            f"{what}{gib(available)} of {gib(bound)} are available now",
            why=why,
            fix="ps aux --sort=-rss | head, and end what is not needed",
        )
    else:
        yield say.ok(f"{what}{gib(available)} of {gib(bound)} are available")


def _needed_memory(context: HostContext) -> tuple[int, str]:
    """Bytes, and what they are for; 0 with the reason if they cannot be told."""
    weights = checkpoint_bytes(context)
    if not weights:
        return 0, "the model's weights cannot be read"
    config, followers = context.config, context.placement.followers
    own = followers * _FOLLOWER_BYTES + context.placement.is_leader * _LEADER_BYTES
    if not context.on_device:
        share = weights * followers // config.nodes
        cache = int(config.cpu.kv_cache_gib * GIB) * followers
        return (
            share + cache + own,
            f"weights {gib(share)}, KV cache {gib(cache)}, programs {gib(own)}",
        )
    if context.shape is None:
        return 0, "the model's config.json is no good"
    try:
        start = device_plan(context, context.shape)
    except (ConfigError, ModelError):
        return 0, "the settings do not fit the model"
    if config.artifacts.location:
        node = start.memory.weights * config.neuron.cores_per_node * followers
        return node + own, f"this node's shards {gib(node)}, programs {gib(own)}"
    compiling = start.start_up.compile_host_bytes
    return compiling + own, "compiling: checkpoint, one node's shards, compiler"


def checkpoint_bytes(context: HostContext) -> int:
    """Bytes of the weights in host memory, in the number format they are served in."""
    files = context.weights_bytes
    if context.config.dtype == "auto" or context.shape is None or not files:
        return files
    return context.shape.num_params * (4 if context.config.dtype == "float32" else 2)


def disk(context: HostContext) -> Iterator[Finding]:
    """Disk for artifacts that are compiled or fetched, and for temporary files."""
    say = Findings("disk")
    yield from _temporary(context, say)
    artifacts = context.config.artifacts
    fetched = bool(artifacts.location) and (is_remote(artifacts.location) or bool(artifacts.cache))
    compiled = context.on_device and not artifacts.location
    if not fetched and not compiled:
        yield say.skipped("nothing is compiled or fetched at start")
        return
    folder = str(artifacts.cache or default_cache())
    weights = checkpoint_bytes(context)
    need = weights if compiled else weights * context.placement.followers // context.config.nodes
    need += _GRAPH_FILES_BYTES * context.on_device
    free = context.system.space(folder).free
    verb = "compiling" if compiled else "fetching artifacts"
    if free >= need:
        yield say.ok(f"{gib(free)} free in {folder}; {verb} takes about {gib(need)}")
        return
    yield say.error(
        f"{verb} takes about {gib(need)} in {folder}, {gib(free)} are free",
        why="a start that fills the disk fails after minutes of work",
        fix="set artifacts.cache to a folder on a larger disk, or make room",
        code=ArtifactError.exit_code,
    )


def _temporary(context: HostContext, say: Findings) -> Iterator[Finding]:
    folder = context.system.variable("TMPDIR") or "/tmp"  # noqa: S108 - where Ray writes
    space = context.system.space(folder)
    if space.free >= space.total * _SMALL_TMP_SHARE:
        yield say.ok(f"{gib(space.free)} free in {folder}")
        return
    yield say.warning(
        f"{folder} has {gib(space.free)} free of {gib(space.total)}",
        why="Ray keeps logs and sockets there, and stops working on a disk 95 % full",
        fix=f"du -xsh {folder}/* | sort -h | tail; or set TMPDIR",
    )


def shared_memory(context: HostContext) -> Iterator[Finding]:
    """Where Ray has its object store, and followers of one host sum their shards."""
    say = Findings("shared memory")
    followers = context.placement.followers
    need = _SHM_FREE_NEURON if context.on_device else followers * _SLOT_BYTES
    need += _OBJECT_STORE_BYTES * (context.config.cluster.kind == "ray")
    space = context.system.space(_SHM)
    if space.free >= need:
        yield say.ok(f"{gib(space.free)} free in {_SHM}")
        return
    have, used = (f"{size / (1 << 20):,.0f} MiB" for size in (space.free, need))
    yield say.warning(
        f"{_SHM} has {have} free, about {used} are used",
        why="Ray falls back to files on disk, and followers of one host cannot share memory",
        fix="sudo mount -o remount,size=16G /dev/shm; docker: --shm-size=16g; Kubernetes: an "
        "emptyDir of medium Memory on /dev/shm",
    )
