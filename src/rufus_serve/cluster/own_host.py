"""`OwnHost`: what the supervisor does for followers beside it without Ray's help.

Ray says where followers go; one whose place is here need not wait for a Ray that is away.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from rufus_serve.cluster.base import OnExit
from rufus_serve.cluster.process import (
    AdoptedProcess,
    FollowerProcess,
    await_gone,
    is_follower,
    kill_session,
    log_file_in,
)
from rufus_serve.cluster.ray_orders import RaySettings
from rufus_serve.protocol.specs import FollowerSpec


class Running(msgspec.Struct):
    """A follower process, on any host."""

    pid: int
    address: str
    killed: bool = False
    watched_here: bool = False


class OwnHost:
    """Starts, watches and kills followers on this host; under its owner's lock."""

    def __init__(self, settings: RaySettings, on_exit: OnExit) -> None:
        self._settings, self._on_exit = settings, on_exit

    def takes(self, spec: FollowerSpec, running: Iterable[Running]) -> bool:
        """Whether the follower's place is here, and free; in others' clusters only Ray knows."""
        settings = self._settings
        here = sum(each.address == settings.address and not each.killed for each in running)
        is_place = not settings.spread or 0 <= spec.place < settings.local_slots
        return not settings.existing and is_place and here < settings.local_slots

    def start(self, spec: FollowerSpec) -> Running:
        """Start the follower.

        Raises:
            ConfigError: `cluster.python` is no interpreter here.
        """
        settings = self._settings
        alone = settings.local_slots == 1
        spec = msgspec.structs.replace(
            spec, address=settings.address, step_port=spec.step_port if alone else 0
        )
        process = FollowerProcess(
            spec,
            python=settings.python,
            log_file=self._log_file(spec.follower_id),
            on_exit=self._on_exit,
        )
        return Running(process.pid, settings.address, watched_here=True)

    def watch(self, follower_id: str, running: Running) -> None:
        """Watch a follower without an agent, if it is here."""
        if running.watched_here or running.address != self._settings.address:
            return
        running.watched_here = True
        log_file = self._log_file(follower_id)
        AdoptedProcess(follower_id, running.pid, log_file=log_file, on_exit=self._on_exit)

    def kill(self, running: Running) -> None:
        """Kill the follower if it is here."""
        if self._has(running):
            kill_session(running.pid)

    def await_gone(self, running: Iterable[Running]) -> None:
        """Return once those here are gone, or soon."""
        await_gone(each.pid for each in running if self._has(each))

    def _has(self, running: Running) -> bool:
        return running.address == self._settings.address and is_follower(running.pid)

    def _log_file(self, follower_id: str) -> Path | None:
        log_dir = self._settings.log_dir
        return log_file_in(Path(log_dir), follower_id) if log_dir else None
