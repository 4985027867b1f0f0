"""`RayProbes`: one child process on every node of a group's Ray cluster, asked line by line.

Joins the Ray of a running server or starts one, as `RayCluster` does, but takes no resources: a
node whose follower is running can be examined too.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rufus_serve.cluster.addresses import choose_address
from rufus_serve.cluster.line_child import LineChild
from rufus_serve.cluster.ray_agent import ADDRESS_VARIABLE
from rufus_serve.cluster.ray_join import RESOURCE, JoinedRay, JoinSettings
from rufus_serve.cluster.ray_session import RaySession
from rufus_serve.errors import RufusError

_POLL_S = 0.5
_START_S = 60.0
_MARGIN_S = 5.0


class ProbedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node with a probe on it."""

    name: str
    """Its host name, made unique by a number where several nodes share it."""
    address: str
    is_here: bool
    """Whether it is the host that the doctor runs on."""
    followers: int
    """Followers that it may run."""
    ray_ports: tuple[int, ...] = ()
    """Ports that its raylet listens on."""


class _ProbeActor:
    """Owns a node's probe."""

    def __init__(self, module: str, python: str) -> None:
        self._child = LineChild(module, python=python)

    def describe(self, towards: str) -> tuple[str, str]:
        """Host name, and the address that reaches `towards`."""
        address = os.environ.get(ADDRESS_VARIABLE) or choose_address(towards=towards)
        return socket.gethostname(), address

    def ask(self, line: bytes, timeout_s: float) -> bytes:
        """See `LineChild.ask`."""
        return self._child.ask(line, timeout_s=timeout_s)

    def close(self) -> None:
        """End the probe."""
        self._child.close()


_RemoteProbe = ray.remote(max_restarts=0, num_cpus=0)(_ProbeActor)


class RayProbes:
    """The probes of all nodes; a context manager."""

    def __init__(
        self, settings: JoinSettings, session: RaySession, *, module: str, python: str, nodes: int
    ) -> None:
        """See `open_probes`."""
        self._settings = settings
        self._command = (module, python)
        self._nodes = nodes
        self._session = session
        self._ray: JoinedRay | None = None
        self._actors: dict[str, Any] = {}
        self.nodes: tuple[ProbedNode, ...] = ()
        self.absent: dict[str, str] = {}
        """Nodes that Ray has but on which no probe could be started: name to reason."""

    def __enter__(self) -> "RayProbes":
        try:
            self._ray = JoinedRay(self._settings, self._session)
            self._start(self._await_nodes())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask_all(self, lines: Mapping[str, bytes], *, timeout_s: float) -> dict[str, bytes | str]:
        """Ask nodes by name, all at once: each one's answer, or as text why there is none."""
        calls = {
            name: self._actors[name].ask.remote(line, timeout_s) for name, line in lines.items()
        }
        deadline = time.monotonic() + timeout_s + _MARGIN_S
        return {name: _answer(call, deadline) for name, call in calls.items()}

    def close(self) -> None:
        """End the probes and leave Ray; a Ray of ours ends with that. May be called twice."""
        if self._ray is not None:
            ends = [actor.close.remote() for actor in self._actors.values()]
            if ends:
                ray.wait(ends, num_returns=len(ends), timeout=_MARGIN_S)
            self._ray.leave()
            self._ray = None
        self._actors = {}
        self._session.clear()

    def _await_nodes(self) -> list[dict[str, Any]]:
        """Nodes that run followers, and this one; those there are once the deadline is over."""
        deadline = time.monotonic() + self._settings.join_s
        while True:
            found = [
                node
                for node in ray.nodes()
                if node["Alive"] and (node["Resources"].get(RESOURCE) or self._is_here(node))
            ]
            if len(found) >= self._nodes or time.monotonic() > deadline:
                return sorted(found, key=lambda node: not self._is_here(node))
            time.sleep(_POLL_S)

    @staticmethod
    def _is_here(node: Mapping[str, Any]) -> bool:
        return bool(node["NodeID"] == ray.get_runtime_context().get_node_id())

    def _start(self, found: list[dict[str, Any]]) -> None:
        actors = [
            _RemoteProbe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(*self._command)
            for node in found
        ]
        calls = [actor.describe.remote(self._settings.address) for actor in actors]
        nodes: list[ProbedNode] = []
        for node, actor, call in zip(found, actors, calls, strict=True):
            try:
                host, address = ray.get(call, timeout=_START_S)
            except GetTimeoutError:
                self.absent[node["NodeManagerHostname"]] = f"not started within {_START_S:g} s"
                continue
            except RayError as error:
                self.absent[node["NodeManagerHostname"]] = _cause(error)
                continue
            same = sum(each.name.partition(" ")[0] == host for each in nodes)
            name = f"{host} ({same + 1})" if same else host
            slots = int(node["Resources"].get(RESOURCE, 0))
            ports = (int(node["NodeManagerPort"]), int(node["ObjectManagerPort"]))
            nodes.append(
                ProbedNode(
                    name=name,
                    address=address,
                    is_here=self._is_here(node),
                    followers=slots,
                    ray_ports=ports,
                )
            )
            self._actors[name] = actor
        self.nodes = tuple(nodes)


def _answer(call: Any, deadline: float) -> bytes | str:
    """The answer that `call` brings, or as text why there is none."""
    try:
        return bytes(ray.get(call, timeout=max(0.0, deadline - time.monotonic())))
    except GetTimeoutError:
        return "the node does not answer"
    except RayError as error:
        return _cause(error)


def _cause(error: RayError) -> str:
    """What went wrong on the node, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RufusError | OSError):
        return str(cause)
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^[\w.]+(Error|Refused|Timeout): ", "", last)
