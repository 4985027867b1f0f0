"""Checks memory and disk before the work begins, rather than being killed in the middle."""

import shutil
from pathlib import Path

import psutil

from rufus_serve.compiler.builder import Need
from rufus_serve.errors import ArtifactError
from rufus_serve.units import gib

_DISK_MARGIN = 1.05


def check_room(need: Need, folder: Path) -> None:
    """Refuse what this host cannot hold.

    Raises:
        ArtifactError: too little memory, or too little disk where `folder` is.
    """
    memory = int(psutil.virtual_memory().available)
    if need.memory > memory:
        raise ArtifactError(
            f"compiling needs about {gib(need.memory)} of memory ({need.reason}), "
            f"{gib(memory)} are available; use a larger host, or --force to try"
        )
    disk = shutil.disk_usage(_existing(folder)).free
    if need.disk * _DISK_MARGIN > disk:
        raise ArtifactError(
            f"{folder}: artifacts take about {gib(need.disk)}, {gib(disk)} are free; "
            "make room or name another --out"
        )


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
