"""Limits of the user and the container: locked memory, files, processes, huge pages."""

from collections.abc import Iterator

from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.meminfo import meminfo
from rufus_serve.doctor.system import UNLIMITED
from rufus_serve.errors import FollowerError
from rufus_serve.units import GIB, gib

_OWN_FILES = 512
"""Sockets, pipes and mapped files of a supervisor, leader or follower with Ray; an assumption."""
_PROCESSES = 4096
"""Threads of Ray, torch, ZeroMQ and vLLM on one host, several times over; an assumption."""
_EFA_HUGE_BYTES = 5 * GIB
"""What AWS's EFA examples for Kubernetes ask for (hugepages-2Mi: 5120Mi)."""


def memlock(context: HostContext) -> Iterator[Finding]:
    """Memory that may be pinned."""
    say = Findings("memlock")
    if not context.on_device:
        yield say.skipped(context.not_on_device)
        return
    soft, hard = context.system.limit("memlock")
    if soft == UNLIMITED:
        yield say.ok("unlimited")
        return
    what = f"this user may lock {soft >> 10:,} KiB of memory"
    why = "the Neuron runtime and EFA pin the buffers that devices read and write"
    fix = (
        "ulimit -l unlimited"
        if hard == UNLIMITED
        else "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/rufus-serve.conf, "
        "then log in again; systemd: LimitMEMLOCK=infinity; docker: --ulimit memlock=-1"
    )
    if context.placement.spread:
        yield say.error(what, why=why, fix=fix, code=FollowerError.exit_code)
    else:
        yield say.warning(what, why=why, fix=fix)


def open_files(context: HostContext) -> Iterator[Finding]:
    """File descriptors: every waiting and running request holds one in the leader."""
    say = Findings("open files")
    config = context.config
    requests = config.limits.max_waiting + config.max_num_seqs if context.placement.is_leader else 0
    needed = requests + _OWN_FILES
    soft, hard = context.system.limit("nofile")
    if soft == UNLIMITED or soft >= needed:
        yield say.ok(f"{_shown(soft)}; about {needed:,} are needed")
        return
    raised = 65536 if hard == UNLIMITED or hard >= 65536 else max(hard, needed)
    yield say.warning(
        f"this user may open {soft:,} files; about {needed:,} are needed (limits.max_waiting "
        f"{config.limits.max_waiting} + max_num_seqs {config.max_num_seqs} + {_OWN_FILES})",
        why="connections would be refused under load",
        fix=f"ulimit -n {raised}; systemd: LimitNOFILE=65536",
    )


def processes(context: HostContext) -> Iterator[Finding]:
    """Threads and processes, of the user and of the container."""
    say = Findings("processes")
    soft, _ = context.system.limit("nproc")
    limits = {"ulimit -u": soft, "cgroup pids.max": _pids_max(context)}
    name, least = min(
        ((name, value) for name, value in limits.items() if value != UNLIMITED),
        key=lambda item: item[1],
        default=("", UNLIMITED),
    )
    if least == UNLIMITED or least >= _PROCESSES:
        yield say.ok(_shown(least))
        return
    yield say.warning(
        f"{least:,} threads and processes are allowed ({name}), fewer than {_PROCESSES:,}",
        why="Ray, torch and vLLM start hundreds of threads, and die when one cannot be started",
        fix="ulimit -u 65536; docker: --pids-limit=-1; kubelet: podPidsLimit",
    )


def _pids_max(context: HostContext) -> int:
    text = context.system.read("/sys/fs/cgroup/pids.max") or ""
    return int(text) if text.isdecimal() else UNLIMITED


def _shown(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else f"{limit:,}"


def huge_pages(context: HostContext) -> Iterator[Finding]:
    """Huge pages, from which EFA's provider takes its buffers if there are any."""
    say = Findings("huge pages")
    if not context.on_device or not context.placement.spread:
        yield say.skipped(context.not_on_device if not context.on_device else "EFA is not used")
        return
    values = meminfo(context.system)
    page = values.get("Hugepagesize", 0) or 2 << 20
    free = values.get("HugePages_Free", 0) * page
    if free:
        yield say.ok(f"{gib(free)} free")
        return
    yield say.note(
        "no huge pages are free",
        why="EFA's provider then takes ordinary pages for its buffers, and can register less",
        fix=f"sudo sysctl -w vm.nr_hugepages={_EFA_HUGE_BYTES // page}",
    )
