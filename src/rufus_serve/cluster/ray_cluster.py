"""`RayCluster`: followers on Ray's nodes, each started and watched by an agent.

Runs in the Ray child. Step data never goes through Ray, and a follower does not need it: an
agent that is lost is replaced by one that watches the same process.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rufus_serve.cluster.base import FollowerExit, NodeInfo
from rufus_serve.cluster.ray_agent import RemoteFollowerAgent
from rufus_serve.cluster.ray_join import RESOURCE
from rufus_serve.cluster.ray_orders import Adopt, Ended, Launched, News, RaySettings, Unwatched
from rufus_serve.cluster.ray_seats import Seat, choose, choose_at, nodes_of, occupied, seats
from rufus_serve.errors import ClusterError, ConfigError
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger(__name__)
_CALL_S = 30.0
_POLL_S = 0.2


@dataclass
class _Follower:
    """A follower that holds a seat."""

    follower_id: str
    seat: Seat
    pid: int = 0
    agent: Any = None
    """The Ray actor that watches it; None between two of them."""
    killed: bool = False


class RayCluster:
    """Starts, adopts and kills followers; any thread, and calls may block."""

    def __init__(self, settings: RaySettings, *, tell: Callable[[News], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._followers: dict[str, _Follower] = {}
        self._agents: dict[Seat, Any] = {}
        """Made ahead of the first launch, or left by a follower that ended."""
        self._lock = threading.Lock()

    def await_nodes(self) -> tuple[NodeInfo, ...]:
        """Return once there is room for all followers; whose agents are started meanwhile.

        Raises:
            ClusterError: too few nodes came; says which did.
        """
        deadline = time.monotonic() + self._settings.join_s
        while len(found := self._seats()) < self._settings.followers:
            if time.monotonic() > deadline:
                raise ClusterError(self._too_few(found))
            time.sleep(_POLL_S)
        with self._lock:
            for seat in found[: self._settings.followers]:
                self._agents[seat] = self._new_agent(seat)
        return nodes_of(found[: self._settings.followers])

    def nodes(self) -> tuple[NodeInfo, ...]:
        """The nodes that are there now."""
        return nodes_of(self._seats())

    def launch(self, spec: FollowerSpec) -> Launched:
        """Start the follower on a free seat.

        Raises:
            ClusterError: no node took it within `timeouts.join_s`.
            ConfigError: `cluster.python` is no interpreter there.
        """
        deadline = time.monotonic() + self._settings.join_s
        follower = self._sit(spec.follower_id, deadline, place=spec.place)
        try:
            agent = follower.agent = self._await_agent(follower, deadline)
            call = agent.launch.remote(self._encoded(spec, follower.seat), self._settings.python)
            follower.pid = ray.get(call, timeout=_CALL_S)
        except (RayError, ClusterError, OSError) as error:
            self._rise(follower)
            cause = getattr(error, "cause", error)
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from error
            raise ClusterError(f"follower {spec.follower_id} cannot be started: {error}") from error
        self._begin_watch(follower)
        address = follower.seat.address
        return Launched(follower_id=spec.follower_id, pid=follower.pid, address=address)

    def adopt(self, order: Adopt) -> None:
        """Watch a follower that runs, once its host is among the nodes."""
        seat = Seat(node_id="", number=0, host="", address=order.address)
        follower = _Follower(order.follower_id, seat, pid=order.pid)
        with self._lock:
            self._followers[order.follower_id] = follower
        self._begin_watch(follower)

    def kill(self, follower_id: str) -> None:
        """Kill the process; its seat is free once its agent says so, now or when there is one."""
        with self._lock:
            follower = self._followers.get(follower_id)
        if follower is None:
            return
        follower.killed = True
        if follower.agent is not None:
            follower.agent.kill.remote()

    def await_killed(self, *, timeout_s: float) -> None:
        """Return once those killed are gone, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._lock:
                if not any(each.killed and each.agent for each in self._followers.values()):
                    return
            time.sleep(_POLL_S / 10)

    # ---- seats and agents ----

    def _seats(self) -> tuple[Seat, ...]:
        here = self._settings.address
        return seats(ray.nodes(), resource=RESOURCE, spread=self._settings.spread, here=here)

    def _too_few(self, found: tuple[Seat, ...]) -> str:
        seen = ", ".join(f"{seat.host} ({seat.address})" for seat in found)
        return (
            f"{self._settings.followers} followers need a node each; after "
            f"{self._settings.join_s:g} s only these offered themselves: {seen or 'none'}; run "
            f"`rufus-serve follower --leader {self._settings.address}:{self._settings.port}` on "
            "the others, or raise timeouts.join_s"
        )

    def _sit(self, follower_id: str, deadline: float, *, place: int) -> _Follower:
        """Take a free seat; that of one just killed is free a moment later."""
        while True:
            found = self._seats()
            with self._lock:
                taken = occupied(found, [other.seat for other in self._followers.values()])
                seat = choose(found, taken, place=place)
                if seat is not None:
                    follower = self._followers[follower_id] = _Follower(follower_id, seat)
                    return follower
            if time.monotonic() > deadline:
                raise ClusterError(f"no node is free for follower {follower_id}")
            time.sleep(_POLL_S)

    def _rise(self, follower: _Follower) -> None:
        with self._lock:
            if self._followers.get(follower.follower_id) is follower:
                del self._followers[follower.follower_id]

    def _new_agent(self, seat: Seat) -> Any:
        strategy = NodeAffinitySchedulingStrategy(seat.node_id, soft=False)
        options = {"scheduling_strategy": strategy, "resources": {RESOURCE: 1.0}}
        here = seat.address == self._settings.address
        log_dir = self._settings.log_dir if here else ""
        return RemoteFollowerAgent.options(**options).remote(log_dir)

    def _await_agent(self, follower: _Follower, deadline: float) -> Any:
        """An agent on the follower's seat that answers.

        Raises:
            ClusterError: none does by the deadline, or the node is gone.
        """
        seat = follower.seat
        while time.monotonic() < deadline:
            with self._lock:
                agent = self._agents.pop(seat, None) or self._new_agent(seat)
            call = agent.ready.remote()
            while not ray.wait([call], timeout=_POLL_S)[0] and time.monotonic() < deadline:
                if seat not in self._seats():
                    raise ClusterError(f"node {seat.host} ({seat.address}) is gone")
            try:
                ray.get(call, timeout=_POLL_S)
            except RayError as error:
                _log.warning("an agent on %s did not start: %s", seat.host, _line(error))
                time.sleep(_POLL_S)
            else:
                return agent
        raise ClusterError(
            f"no agent started on {seat.host} ({seat.address}) within {self._settings.join_s:g} s"
        )

    def _encoded(self, spec: FollowerSpec, seat: Seat) -> bytes:
        """What the agent is told: each host has the token, and the step port is one follower's."""
        elsewhere = seat.address != self._settings.address
        beside = sum(other.address == seat.address for other in self._seats())
        spec = msgspec.structs.replace(
            spec,
            address=seat.address,
            token="" if elsewhere else spec.token,
            step_port=spec.step_port if beside == 1 else 0,
        )
        return msgspec.json.encode(spec)

    # ---- watching ----

    def _begin_watch(self, follower: _Follower) -> None:
        threading.Thread(
            target=self._watch, args=(follower,), name=f"follower {follower.follower_id}",
            daemon=True,
        ).start()  # fmt: skip

    def _watch(self, follower: _Follower) -> None:
        """Tell of the follower's end, by as many agents as that takes."""
        while self._holds_seat(follower):
            if follower.agent is None:
                self._find_agent(follower)
                continue
            try:
                told = ray.get(follower.agent.wait_exit.remote())
            except RayError as error:
                follower.agent = None
                self._tell(Unwatched(follower_id=follower.follower_id, reason=_line(error)))
                continue
            with self._lock:
                self._agents[follower.seat] = follower.agent
            self._rise(follower)
            self._tell(Ended(exit=msgspec.json.decode(told, type=FollowerExit)))
            return

    def _find_agent(self, follower: _Follower) -> None:
        """Have an agent on the follower's host watch it, if that host is there."""
        found = self._seats()
        with self._lock:
            others = self._followers.values()
            taken = occupied(found, [other.seat for other in others if other is not follower])
            seat = choose_at(found, taken, address=follower.seat.address)
            if seat is not None:
                follower.seat = seat
        if seat is None:
            time.sleep(_POLL_S)
            return
        try:
            agent = self._await_agent(follower, time.monotonic() + self._settings.join_s)
            ray.get(agent.adopt.remote(follower.follower_id, follower.pid), timeout=_CALL_S)
            follower.agent = agent
            if follower.killed:
                agent.kill.remote()
        except (RayError, ClusterError) as error:
            _log.warning("follower %s is not watched: %s", follower.follower_id, _line(error))
            time.sleep(_POLL_S)

    def _holds_seat(self, follower: _Follower) -> bool:
        with self._lock:
            return self._followers.get(follower.follower_id) is follower


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
