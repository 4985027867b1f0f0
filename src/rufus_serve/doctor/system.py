"""`System`: everything a check may ask of its host; tests put recorded answers in its place."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

COMMAND_S = 20.0
"""Deadline of a command; `neuron-ls` and `fi_info` answer within a second when all is well."""

UNLIMITED = -1
_TIMED_OUT = 124


class CommandResult(NamedTuple):
    """How a command ended."""

    code: int
    """Exit code; 124 if it passed its deadline, as timeout(1) has it."""
    out: str
    err: str

    @property
    def words(self) -> str:
        """Its own explanation in one line: the end of what it printed."""
        lines = (self.err or self.out).strip().splitlines()
        return lines[-1].strip() if lines else "no message"


class Space(NamedTuple):
    """A file system, in bytes."""

    total: int
    free: int


class Interface(NamedTuple):
    """A network interface that is up, with one of its IPv4 addresses."""

    name: str
    address: str
    mtu: int


class System(Protocol):
    """One host. Nothing here raises for what is absent or forbidden."""

    def read(self, path: str) -> str | None:
        """A small file's text, stripped; None if it cannot be read."""

    def list(self, path: str) -> tuple[str, ...]:
        """Names in a folder, sorted; empty if there is none."""

    def is_usable(self, path: str) -> bool:
        """Whether this user may read and write `path`."""

    def run(self, *command: str) -> CommandResult | None:
        """Run a command with a deadline; None if it is not installed."""

    def space(self, path: str) -> Space:
        """The file system that `path`, or the nearest folder above that exists, is on."""

    def limit(self, name: str) -> tuple[int, int]:
        """Soft and hard limit `memlock` (bytes), `nofile` or `nproc`; -1 is unlimited."""

    def variable(self, name: str) -> str:
        """An environment variable; empty if unset."""

    def package(self, name: str) -> str:
        """Version of a Python package of this interpreter; empty if it is not installed."""

    def python(self) -> str:
        """This interpreter's version."""

    def kernel(self) -> str:
        """Release of the running kernel."""

    def interfaces(self) -> tuple[Interface, ...]:
        """Network interfaces that are up."""

    def why_not_listen(self, address: str, port: int) -> str:
        """Why nothing can listen there; empty if something could."""


class HostSystem:
    """The host this process runs on."""

    def read(self, path: str) -> str | None:
        """See `System`."""
        try:
            return Path(path).read_text(errors="replace").strip()
        except OSError:
            return None

    def list(self, path: str) -> tuple[str, ...]:
        """See `System`."""
        try:
            return tuple(sorted(os.listdir(path)))  # noqa: PTH208 - names, not paths
        except OSError:
            return ()

    def is_usable(self, path: str) -> bool:
        """See `System`."""
        return os.access(path, os.R_OK | os.W_OK)

    def run(self, *command: str) -> CommandResult | None:
        """See `System`."""
        program = shutil.which(command[0])
        return None if program is None else _run([program, *command[1:]])

    def space(self, path: str) -> Space:
        """See `System`."""
        folder = Path(path).absolute()
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        usage = shutil.disk_usage(existing)
        return Space(usage.total, usage.free)

    def limit(self, name: str) -> tuple[int, int]:
        """See `System`."""
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        return _limit(soft), _limit(hard)

    def variable(self, name: str) -> str:
        """See `System`."""
        return os.environ.get(name, "")

    def package(self, name: str) -> str:
        """See `System`."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def python(self) -> str:
        """See `System`."""
        return platform.python_version()

    def kernel(self) -> str:
        """See `System`."""
        return platform.release()

    def interfaces(self) -> tuple[Interface, ...]:
        """See `System`."""
        stats = psutil.net_if_stats()
        return tuple(
            Interface(name, entry.address, stats[name].mtu)
            for name, entries in sorted(psutil.net_if_addrs().items())
            if name in stats and stats[name].isup
            for entry in entries
            if entry.family is socket.AF_INET
        )

    def why_not_listen(self, address: str, port: int) -> str:
        """See `System`."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen()
            except OSError as error:
                return error.strerror or str(error)
        return ""


def _run(command: Sequence[str]) -> CommandResult:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return CommandResult(_TIMED_OUT, "", f"no answer within {COMMAND_S:g} s")
    except OSError as error:
        return CommandResult(126, "", f"cannot be run: {error.strerror or error}")
    return CommandResult(done.returncode, done.stdout, done.stderr)


def _limit(value: int) -> int:
    return UNLIMITED if value == resource.RLIM_INFINITY else value
