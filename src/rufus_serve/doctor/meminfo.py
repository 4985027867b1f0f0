"""What the kernel says of memory, and the container's bound on it."""

from rufus_serve.doctor.system import System


def meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo by name: bytes, but for counts of huge pages."""
    values = {}
    for line in (system.read("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            values[name] = int(words[0]) << (10 if words[1:] == ["kB"] else 0)
    return values


def memory_bound(system: System) -> int:
    """Most memory that processes here may have: the host's, or the container's if less."""
    total = meminfo(system).get("MemTotal", 0)
    bound = system.read("/sys/fs/cgroup/memory.max") or ""
    return min(total, int(bound)) if bound.isdecimal() else total


def memory_available(system: System) -> int:
    """Memory that can be had now, within the container's bound."""
    free = meminfo(system).get("MemAvailable", 0)
    used = system.read("/sys/fs/cgroup/memory.current") or ""
    bound = system.read("/sys/fs/cgroup/memory.max") or ""
    if bound.isdecimal() and used.isdecimal():
        return max(0, min(free, int(bound) - int(used)))
    return free
