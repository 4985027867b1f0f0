"""`RayCluster`: Ray places one agent per node, each running that node's follower."""

import ipaddress
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rufus_serve.cluster.addresses import await_listener
from rufus_serve.cluster.base import FollowerExit, NodeInfo, OnExit
from rufus_serve.cluster.process import AdoptedProcess
from rufus_serve.cluster.ray_agent import RESOURCE, RemoteFollowerAgent
from rufus_serve.cluster.ray_greeting import announce
from rufus_serve.cluster.ray_head import RayHead
from rufus_serve.errors import ClusterError, ConfigError
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger(__name__)
_CALL_S = 30.0
_KILL_S = 5.0
"""One that a cut link keeps alive is refused, and ends, when it says hello again."""
_POLL_S = 0.5
_FREE_S = 5.0
_FREE_POLL_S = 0.01


@dataclass(frozen=True)
class RaySettings:
    """What `RayCluster` needs of the configuration."""

    followers: int
    """Bundles to place, stand-bys included."""
    spread: bool
    """Whether followers join from other hosts, one per Ray node; else all run here."""
    address: str
    """This host's address."""
    port: int
    """Port of the Ray head; 0 for a free one."""
    existing: str
    """Address of a running Ray cluster to join; empty to start one here."""
    join_s: float
    python: str
    log_dir: Path | None
    local_slots: int
    """Followers that this host may run."""


@dataclass
class _Slot:
    """One bundle and, once placed, its agent."""

    bundle: int
    agent: Any = None
    follower_id: str = ""
    node: NodeInfo | None = None
    adopted: AdoptedProcess | None = None


class RayCluster:
    """`Cluster` on Ray. Step data never goes through Ray; it only starts and watches."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._slots = [_Slot(bundle) for bundle in range(settings.followers)]
        self._group: PlacementGroup | None = None
        self._head: RayHead | None = None
        self._on_exit: OnExit = lambda _: None
        self._lock = threading.Lock()
        self._watchers: list[threading.Thread] = []
        self._interrupted = threading.Event()
        self._stopped = False
        self._released = False

    def start(self, on_exit: OnExit) -> tuple[NodeInfo, ...]:
        """Start or join Ray, place the bundles and meet their agents."""
        self._on_exit = on_exit
        self._connect()
        strategy = "STRICT_SPREAD" if self._settings.spread else "PACK"
        bundles = [{RESOURCE: 1.0} for _ in self._slots]
        self._group = placement_group(bundles, strategy=strategy)
        self._await_placement()
        for slot in self._slots:
            self._place(slot)
        with self._lock:
            self._slots.sort(key=self._nearness)
        nodes = [slot.node for slot in self._slots if slot.node is not None]
        return tuple(nodes)

    def launch(self, spec: FollowerSpec) -> None:
        """Start the follower on the first bundle that runs none."""
        if self._stopped:
            # Ray would start a cluster of its own for the call.
            raise ClusterError(f"follower {spec.follower_id} is not started: the cluster ended")
        slot = self._claim_slot(spec.follower_id)
        try:
            self._launch_on(slot, spec)
        except (RayError, ClusterError, OSError) as error:
            with self._lock:
                slot.follower_id, slot.agent = "", None
            cause = getattr(error, "cause", error)
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from error
            raise ClusterError(f"follower {spec.follower_id} cannot be started: {error}") from error

    def kill(self, follower_id: str) -> None:
        """Kill the process, if its agent still answers; Ray takes it along otherwise."""
        with self._lock:
            slot = next((slot for slot in self._slots if slot.follower_id == follower_id), None)
        if slot is None:
            return
        if slot.adopted is not None:
            slot.adopted.kill()
            return
        if slot.agent is None:
            return
        try:
            ray.get(slot.agent.kill.remote(), timeout=_KILL_S)
        except RayError as error:
            _log.warning("the agent of follower %s does not answer: %s", follower_id, error)

    def adopt(self, follower_id: str, pid: int, address: str) -> None:
        """Give the follower the slot of its node; on this host, watch its process as well."""
        with self._lock:
            free = [slot for slot in self._slots if not slot.follower_id]
            here = [slot for slot in free if slot.node and slot.node.address == address]
            slot = (here or free)[0]
            slot.follower_id = follower_id

        def ended(news: FollowerExit) -> None:
            slot.adopted = None
            self._ended(slot, news)

        if address == self._settings.address:
            slot.adopted = AdoptedProcess(follower_id, pid, on_exit=ended)

    def interrupt(self) -> None:
        """Have calls that wait for a node give up; any thread."""
        self._interrupted.set()

    def release(self) -> None:
        """Leave running followers alone from now on."""
        self._released = True

    def stop(self) -> None:
        """Kill all followers and leave Ray; a Ray of ours ends with that."""
        if self._stopped:
            return
        self._stopped = True
        if ray.is_initialized():
            running = [slot.follower_id for slot in self._slots if slot.follower_id]
            for follower_id in running if not self._released else ():
                self.kill(follower_id)
            for watcher in self._watchers:
                watcher.join(2 * _POLL_S)
            ray.shutdown()
        if self._head is not None:
            self._head.stop()

    # ---- bringing it up ----

    def _connect(self) -> None:
        settings = self._settings
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # Ray warns that it cannot handle SIGTERM on this thread; the supervisor does.
        logging.getLogger("ray").setLevel(logging.ERROR)
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.WARNING,
            "configure_logging": False,
            "namespace": "rufus-serve",
        }
        existing = settings.existing
        if existing:
            await_listener(existing, timeout_s=settings.join_s)
        if settings.spread and not existing:
            resources = f'{{"{RESOURCE}": {settings.local_slots}}}'
            self._head = RayHead(address=settings.address, port=settings.port, resources=resources)
            self._head.wait_ready()
            existing = f"{settings.address}:{settings.port}"
        try:
            if existing:
                ray.init(address=existing, **common)
                if settings.existing:
                    announce(existing)
                return
            # Without an address, Ray joins whatever cluster this host was last part of.
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=max(1, settings.followers),
                object_store_memory=80 * 1024 * 1024,
                resources={RESOURCE: float(settings.local_slots)},
                _node_ip_address=settings.address,
                **common,
            )
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterError(f"Ray cannot be started or joined: {error}") from error

    def _await_placement(self) -> None:
        assert self._group is not None
        deadline = time.monotonic() + self._settings.join_s
        while not self._group.wait(_POLL_S):
            self._raise_if_interrupted()
            if time.monotonic() > deadline:
                raise ClusterError(self._too_few())

    def _raise_if_interrupted(self) -> None:
        if self._interrupted.is_set():
            raise ClusterError("stopped while waiting for nodes")

    def _too_few(self) -> str:
        nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(RESOURCE)]
        seen = ", ".join(f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']})" for n in nodes)
        return (
            f"{self._settings.followers} followers need a node each; after "
            f"{self._settings.join_s:g} s only these offered themselves: {seen or 'none'}; run "
            f"`rufus-serve follower --leader {self._settings.address}:{self._settings.port}` on "
            "the others, or raise timeouts.join_s"
        )

    def _place(self, slot: _Slot) -> None:
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=slot.bundle
        )
        log_dir = str(self._settings.log_dir or "")
        options = {"scheduling_strategy": strategy, "resources": {RESOURCE: 1.0}}
        slot.agent = RemoteFollowerAgent.options(**options).remote(log_dir)
        try:
            host, address, _python = self._meet(slot)
        except RayError as error:
            raise ClusterError(f"the agent of bundle {slot.bundle} failed: {error}") from error
        slot.node = NodeInfo(host=host, address=address, slots=1)

    def _meet(self, slot: _Slot) -> tuple[str, str, str]:
        """What a new agent says of itself; its node may have yet to come."""
        call = slot.agent.describe.remote(self._settings.address)
        deadline = time.monotonic() + self._settings.join_s
        while not ray.wait([call], timeout=_POLL_S)[0]:
            self._raise_if_interrupted()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the agent of bundle {slot.bundle} did not start within "
                    f"{self._settings.join_s:g} s"
                )
        said: tuple[str, str, str] = ray.get(call)
        return said

    def _nearness(self, slot: _Slot) -> tuple[bool, int]:
        """Ranks go by this: rank 0 sends the logits, and had best sit beside the leader."""
        assert slot.node is not None
        address = slot.node.address
        return address != self._settings.address, int(ipaddress.ip_address(address))

    # ---- one follower ----

    def _claim_slot(self, follower_id: str) -> _Slot:
        """A bundle that runs no follower; one just killed leaves its own a moment later."""
        deadline = time.monotonic() + _FREE_S
        while True:
            with self._lock:
                for slot in self._slots:
                    if not slot.follower_id:
                        slot.follower_id = follower_id
                        return slot
            if time.monotonic() > deadline:
                raise ClusterError(f"no node is free for follower {follower_id}")
            time.sleep(_FREE_POLL_S)

    def _launch_on(self, slot: _Slot, spec: FollowerSpec) -> None:
        if slot.agent is None:
            self._place(slot)
        assert slot.node is not None
        remote = slot.node.address != self._settings.address
        address = slot.node.address
        shared = [other for other in self._slots if other.node and other.node.address == address]
        spec = msgspec.structs.replace(
            spec,
            address=address,
            token="" if remote else spec.token,
            step_port=spec.step_port if len(shared) == 1 else 0,
        )
        call = slot.agent.launch.remote(msgspec.json.encode(spec), self._settings.python)
        ray.get(call, timeout=_CALL_S)
        watcher = threading.Thread(
            target=self._watch, args=(slot, spec.follower_id), name="agent", daemon=True
        )
        watcher.start()
        self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]

    def _watch(self, slot: _Slot, follower_id: str) -> None:
        try:
            call = slot.agent.wait_exit.remote()
            # Ray ends the whole process if it is shut down under a blocked call.
            while not ray.wait([call], timeout=_POLL_S)[0]:
                if self._stopped:
                    return
            news = msgspec.json.decode(ray.get(call), type=FollowerExit)
        except RayError as error:
            slot.agent = None
            cause = str(error).strip().splitlines()[0]
            text = f"the Ray actor on {slot.node and slot.node.host} died: {cause}"
            news = FollowerExit(follower_id=follower_id, code=-9, cause=text)
        self._ended(slot, news)

    def _ended(self, slot: _Slot, news: FollowerExit) -> None:
        with self._lock:
            slot.follower_id = ""
        if not self._stopped:
            self._on_exit(news)
