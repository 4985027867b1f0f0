"""`python -m rufus_serve.cluster.ray_driver FD`: the supervisor's Ray child.

Its orders come, and its news go, through the socket FD. It ends when that closes, or when Ray
does; the supervisor starts another one, which finds the followers running.
"""

import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rufus_serve.cluster.ray_join import JoinedRay, JoinSettings
from rufus_serve.cluster.ray_orders import (
    ALIVE_S,
    Adopt,
    Alive,
    AnyOrder,
    Came,
    CannotJoin,
    Join,
    Kill,
    Launch,
    NotLaunched,
    Survey,
    Surveyed,
    Wire,
)
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.errors import ClusterError, RufusError
from rufus_serve.log import configure_logging

if TYPE_CHECKING:
    from rufus_serve.cluster.ray_cluster import RayCluster

_log = logging.getLogger(__name__)
_KILL_S = 2.0
_MOST_LAUNCHES = 1024
"""At a time: each waits for a node on a thread of its own."""


class Driver:
    """Obeys one order after another; those that take long on threads of their own."""

    def __init__(self, wire: Wire, order: Join) -> None:
        self._wire, self._settings, self._again = wire, order.settings, order.again
        self._session = RaySession(Path(order.folder), session_id=os.getsid(0))
        self._cluster: RayCluster | None = None
        self._pool = ThreadPoolExecutor(_MOST_LAUNCHES, thread_name_prefix="order")
        threading.Thread(target=self._tell_alive, name="alive", daemon=True).start()
        threading.Thread(target=self._join, name="join", daemon=True).start()

    def obey(self, order: AnyOrder) -> None:
        """Carry `order` out, or begin to. None but `Join` comes before Ray is there."""
        assert self._cluster is not None
        match order:
            case Launch():
                self._pool.submit(self._launch, self._cluster, order)
            case Adopt():
                self._cluster.adopt(order)
            case Kill():
                self._cluster.kill(order.follower_id)
            case Survey():
                self._wire.send(Surveyed(nodes=self._cluster.nodes()))

    def leave(self) -> None:
        """See that what was to be killed is, and take down a Ray of ours."""
        if self._cluster is not None:
            self._cluster.await_killed(timeout_s=_KILL_S)
        self._session.clear(keep_files=True)

    def _tell_alive(self) -> NoReturn:
        while True:
            self._wire.send(Alive())
            time.sleep(ALIVE_S)

    def _join(self) -> None:
        """Get into Ray, tell of its nodes, and wait for its end."""
        settings = self._settings
        try:
            joined = JoinedRay(
                JoinSettings(
                    address=settings.address,
                    existing=settings.existing,
                    port=settings.port,
                    local_slots=settings.local_slots,
                    join_s=settings.join_s,
                    announce=True,
                ),
                self._session,
            )
        except RufusError as error:
            self._end(error, may_pass=type(error) is ClusterError and not settings.existing)
        # Not before Ray's settings stand, which it reads when it is imported.
        from rufus_serve.cluster.ray_cluster import RayCluster

        cluster = RayCluster(settings, tell=self._wire.send)
        try:
            nodes = cluster.nodes() if self._again else cluster.await_nodes()
        except RufusError as error:
            self._end(error, may_pass=False)
        self._cluster = cluster
        self._wire.send(Came(nodes=nodes))
        if joined.head is not None:
            words = joined.head.wait()
            self._end(ClusterError(f"Ray's head ended: {words}"), may_pass=True)

    def _end(self, error: RufusError, *, may_pass: bool) -> NoReturn:
        """Say why, and end this process."""
        self._wire.send(CannotJoin(reason=str(error), exit_code=error.exit_code, may_pass=may_pass))
        self._session.clear(keep_files=True)
        os._exit(error.exit_code)

    def _launch(self, cluster: "RayCluster", order: Launch) -> None:
        try:
            self._wire.send(cluster.launch(order.spec))
        except Exception as error:  # noqa: BLE001 - of all that Ray raises while it dies
            code = error.exit_code if isinstance(error, RufusError) else ClusterError.exit_code
            who, why = order.spec.follower_id, str(error) or type(error).__name__
            self._wire.send(NotLaunched(follower_id=who, reason=why, exit_code=code))


def give_up(wire: Wire, error: BaseException | None) -> NoReturn:
    """A thread failed by `error`: another driver starts afresh, where this one would hang."""
    reason = f"its driver failed: {type(error).__name__}: {error}"
    wire.send(CannotJoin(reason=reason, exit_code=ClusterError.exit_code, may_pass=True))
    os._exit(ClusterError.exit_code)


def main() -> NoReturn:
    """Obey until nobody gives orders."""
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    threading.excepthook = lambda failed: give_up(wire, failed.exc_value)
    first = wire.next_order()
    if isinstance(first, Join):
        configure_logging("ray", level=first.settings.log_level)
        driver = Driver(wire, first)
        while (order := wire.next_order()) is not None:
            driver.obey(order)
        driver.leave()
    # Ray's own way out would wait for its raylet.
    os._exit(0)


if __name__ == "__main__":
    main()
