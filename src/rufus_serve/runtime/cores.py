"""Cores this process may keep busy."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(*, cgroup: Path = _CGROUP) -> int:
    """Cores of the affinity mask, or of the container's CPU quota if that is less; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, min(affinity or 1, math.ceil(quota) if quota else affinity or 1))


def _quota(cgroup: Path) -> float:
    """Cores' worth of time by cgroup version 2 or 1; 0 if there is no quota."""
    found = _read(cgroup / "cpu.max").split()
    if not found:
        found = [_read(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    try:
        quota, period = (float(text) for text in found[:2])
    except ValueError:
        return 0.0
    return quota / period if quota > 0 and period > 0 else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
