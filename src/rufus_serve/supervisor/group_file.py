"""What a running group leaves on disk: for commands on this host, and for the next supervisor."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

if TYPE_CHECKING:
    from rufus_serve.config import ServeConfig

_CLOCK_S = 2.0
"""Start times are told relative to a boot time that follows the wall clock's corrections."""


class KeptFollower(msgspec.Struct, frozen=True, kw_only=True):
    """A follower process that may outlive its supervisor."""

    follower_id: str
    node_rank: int
    pid: int
    address: str
    group: int = 0


class GroupFile(msgspec.Struct, frozen=True, kw_only=True):
    """The groups that serve, or served, on one port of this host. Holds the token: mode 0600."""

    supervisor_pid: int
    link_endpoint: str
    control_endpoint: str
    token: str
    run_dir: str
    epoch: int = 0
    """The highest of any group."""
    followers: tuple[KeptFollower, ...] = ()
    supervisor_began: float = 0.0
    """When that process was started: its id may be another's by now."""

    def save(self, path: Path) -> None:
        """Write atomically, readable by the owner alone."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.touch(mode=0o600)
        partial.write_bytes(msgspec.json.encode(self))
        partial.replace(path)

    @property
    def last_serial(self) -> int:
        """The highest number given to one of its followers."""
        numbers = [int(each.follower_id.rpartition(".")[2]) for each in self.followers]
        return max(numbers, default=0)

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs, and is not just a process of the same id."""
        try:
            process = psutil.Process(self.supervisor_pid)
            is_ours = abs(process.create_time() - self.supervisor_began) < _CLOCK_S
            return is_ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def state_dir(config_dir: str = "") -> Path:
    """Where group files are kept: `config_dir`, or the user's state folder."""
    if config_dir:
        return Path(config_dir)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "rufus-serve"


def path_for(config: "ServeConfig") -> Path:
    """The group file of an endpoint on this host."""
    return path_of_port(config.port, config.cluster.state_dir)


def path_of_port(port: int, config_dir: str = "") -> Path:
    """The group file of the endpoint on `port`."""
    return state_dir(config_dir) / f"serve-{port}.json"


def load(path: Path) -> GroupFile | None:
    """The group file at `path`, or None if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=GroupFile)
    except (OSError, msgspec.DecodeError):
        return None


def running(config_dir: str = "") -> dict[int, GroupFile]:
    """The groups of this host whose supervisor runs, by the port of their endpoint."""
    found = {}
    for path in sorted(state_dir(config_dir).glob("serve-*.json")):
        port = path.stem.partition("-")[2]
        group = load(path)
        if port.isdecimal() and group is not None and group.alive:
            found[int(port)] = group
    return found
