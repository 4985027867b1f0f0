"""Kills the processes of a server's Ray, and sees what its followers and streams make of it."""

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil

from tests.e2e.groups import Group
from tests.e2e.losses import pids, slowness, status_of
from tests.e2e.server import Server
from tests.e2e.streams import Answer

VICTIMS = {
    "driver": "rufus_serve.cluster.ray_driver",
    "head": "ray start",
    "gcs": "gcs_server",
    "raylet": "raylet/raylet",
    "dashboard": "dashboard.py",
    "client server": "ray.util.client.server",
    "follower agent": "ray::FollowerAgent",
    "dashboard agent": "ray::DashboardAgent",
    "runtime-env agent": "ray::RuntimeEnvAgent",
}
"""Every kind of process that Ray has on a server's host, by a part of its command line."""
TAKES_RAY_ALONG = [name for name in VICTIMS if name != "follower agent"]


def ray_processes(server: Server, victim: str) -> list[psutil.Process]:
    """Those of that kind, below the Ray child of `server`."""
    found = []
    for process in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if VICTIMS[victim] in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill(server: Server, victim: str, *, deadline_s: float = 60.0) -> None:
    """SIGKILL one of that kind as soon as there is one."""
    give_up = time.monotonic() + deadline_s
    while not (found := ray_processes(server, victim)):
        assert time.monotonic() < give_up, f"no {victim}:\n{server.log}"
        time.sleep(0.02)
    found[0].kill()


@contextlib.contextmanager
def kept_away(server: Server) -> Iterator[None]:
    """Ray is not there, as each of its heads is killed before it is up."""

    def strike() -> None:
        while not over.wait(0.05):
            for process in ray_processes(server, "head"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    over = threading.Event()
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        while status_of(server).cluster_up:
            time.sleep(0.05)
        yield
    finally:
        over.set()
        thread.join()


class Blow:
    """One kill of a part of Ray, and that nobody who is served notices."""

    def __init__(self, group: Group, victim: str) -> None:
        self._server = group.server
        self._group = group
        self._victim = victim
        self._before = pids(group.server)
        self._status = status_of(group.server)
        self._log_length = len(group.server.log)
        kill(group.server, victim)

    def assert_unnoticed(self, answers: list[Answer]) -> None:
        """Followers, epoch and streams are what they were."""
        self._group.assert_undisturbed(answers)
        for answer in answers:
            assert answer.longest_pause_s < 2.0 * slowness(), answer
        now = status_of(self._server)
        assert (now.epoch, now.restarts) == (self._status.epoch, self._status.restarts)
        assert pids(self._server) == self._before
        assert "is over" not in self._server.log[self._log_length :]

    def wait_back(self, *, deadline_s: float = 90.0) -> None:
        """Until Ray was started again by itself, and watches the followers."""
        give_up = time.monotonic() + deadline_s
        restarts = self._status.cluster_restarts
        restarts += self._victim in TAKES_RAY_ALONG
        while not (
            (now := status_of(self._server)).cluster_up
            and now.cluster_restarts >= restarts
            and len(ray_processes(self._server, "follower agent")) == len(self._before)
        ):
            assert time.monotonic() < give_up, f"{now}\n{self._server.log}"
            time.sleep(0.1)
