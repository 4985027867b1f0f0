"""`RayKeeper`: the supervisor's side of Ray, which lives in a child process and may die.

Imports no ray. When the child ends, as it does whenever a part of Ray does, the next one is
started behind the running followers. Meanwhile those on this host are watched, killed and started
from here (`OwnHost`); those elsewhere are heard of by their control connections alone, and wait.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from rufus_serve import errors
from rufus_serve.cluster.base import ClusterHealth, FollowerExit, NodeInfo, OnExit
from rufus_serve.cluster.own_host import OwnHost, Running
from rufus_serve.cluster.ray_child import RayChild
from rufus_serve.cluster.ray_orders import (
    Adopt,
    Alive,
    AnyNews,
    Came,
    CannotJoin,
    Ended,
    Kill,
    Launch,
    Launched,
    NotLaunched,
    RaySettings,
    Survey,
    Surveyed,
    Unwatched,
)
from rufus_serve.cluster.ray_tls import GroupTls
from rufus_serve.cluster.ray_token import ray_environment
from rufus_serve.errors import ClusterError, RufusError
from rufus_serve.protocol.specs import FollowerSpec

_log = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_FIRST_TRIES = 3
"""Before the first start is given up: Ray may be killed while it starts, too."""
_STOP_S = 10.0
_LOOK_S = 1.0
_SILENT_S = 20.0
"""From a child that runs; one that was stopped says nothing."""
_OVERDUE_S = 45.0
"""After `join_s`: the driver gives a launch up before."""
_COME_S = 120.0
"""Beside twice `join_s`, before a child is there: it gives up by itself before."""
_SURVEY_S = 5.0


class _Launch(msgspec.Struct):
    """A launch that somebody waits for."""

    spec: FollowerSpec
    sent: float = 0.0
    """When; 0 while Ray is awaited."""
    answer: Launched | NotLaunched | None = None


class _Survey(msgspec.Struct):
    """A question for nodes; there are some, once it is answered."""

    nodes: tuple[NodeInfo, ...] = ()


class RayKeeper:
    """`Cluster` on Ray; any thread. The lock of `_changed` guards all that changes."""

    def __init__(self, settings: RaySettings, *, group_token: str, run_dir: Path) -> None:
        self._settings, self._run_dir = settings, run_dir
        self._environ = _environ(settings, group_token, run_dir)
        self._on_exit: OnExit = lambda _: None
        self._changed = threading.Condition()
        self._child: RayChild | None = None
        self._is_up = False
        self._since = time.monotonic()
        self._trouble = ""
        self._restarts = 0
        self._came: tuple[NodeInfo, ...] | RufusError | None = None
        """What the first start brought."""
        self._survey = _Survey()
        self._own_host = OwnHost(settings, self._ended)
        self._running: dict[str, Running] = {}
        self._given: set[int] = set()
        """Places on this host that Ray gave: what comes after a loss there does not ask again."""
        self._launches: dict[str, _Launch] = {}
        self._stopping = self._interrupted = self._released = False
        self._born = self._heard = 0.0
        self._killed_because = ""
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("ray", self._keep), ("ray watch", self._watch_child))
        ]

    @property
    def health(self) -> ClusterHealth:
        """Whether Ray is there now, and how often it was started again."""
        with self._changed:
            away_s = time.monotonic() - self._since
            detail = "" if self._is_up else f"Ray is away for {away_s:.0f} s: {self._trouble}"
            return ClusterHealth(up=self._is_up, restarts=self._restarts, detail=detail)

    def start(self, on_exit: OnExit) -> tuple[NodeInfo, ...]:
        """Start or join Ray, and wait for enough nodes."""
        self._on_exit = on_exit
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._came is not None or self._interrupted)
            if isinstance(self._came, tuple):
                return self._came
            raise self._came or ClusterError("stopped while waiting for nodes")

    def launch(self, spec: FollowerSpec) -> None:
        """Start the follower where Ray says, once it is there; at once if its place is here."""
        launch = _Launch(spec)
        with self._changed:
            self._launches[spec.follower_id] = launch
            self._await(spec.follower_id, lambda: self._is_up or self._takes(spec))
            if self._takes(spec) and (spec.place in self._given or not self._is_up):
                self._start_here(spec)
                return
            assert self._child is not None
            launch.sent = time.monotonic()
            self._child.send(Launch(spec=spec))
            self._await(spec.follower_id, lambda: launch.answer is not None)
            del self._launches[spec.follower_id]
        if isinstance(launch.answer, NotLaunched):
            answer = launch.answer
            raise errors.of(answer.exit_code, answer.reason, otherwise=ClusterError)

    def _takes(self, spec: FollowerSpec) -> bool:
        return self._own_host.takes(spec, self._running.values())

    def _start_here(self, spec: FollowerSpec) -> None:
        del self._launches[spec.follower_id]
        running = self._running[spec.follower_id] = self._own_host.start(spec)
        if self._is_up:
            self._hand_over(spec.follower_id, running)

    def make_room(self, followers: int) -> tuple[NodeInfo, ...]:
        """The nodes that are there, by Ray's word now."""
        with self._changed:
            survey = self._survey = _Survey()
            if self._is_up and self._child is not None:
                self._child.send(Survey())
                self._changed.wait_for(lambda: survey.nodes or not self._is_up, _SURVEY_S)
            found = survey.nodes
        if not found:
            raise ClusterError("Ray is away now and is started again; try once more")
        if len(found) < followers:
            raise ClusterError(self._too_few(found, followers))
        return found[:followers]

    def _too_few(self, found: Sequence[NodeInfo], followers: int) -> str:
        settings = self._settings
        if not settings.spread:
            return f"{followers} followers on this host are too many; it takes {len(found)}"
        seen = ", ".join(f"{node.host} ({node.address})" for node in found)
        leader = settings.existing or f"{settings.address}:{settings.port}"
        return (
            f"{followers} followers need a node each; there are {len(found)}: {seen}; run "
            f"`rufus-serve follower --leader {leader}` on the others first"
        )

    def kill(self, follower_id: str) -> None:
        """Kill the process: from here if it is on this host, else by its agent."""
        with self._changed:
            self._launches.pop(follower_id, None)
            running = self._running.get(follower_id)
            if running is not None:
                running.killed = True
                self._own_host.kill(running)
            if self._is_up and self._child is not None:
                self._child.send(Kill(follower_id=follower_id))
            self._changed.notify_all()

    def adopt(self, follower_id: str, pid: int, address: str) -> None:
        """Take over a follower that an earlier supervisor started."""
        with self._changed:
            running = self._running[follower_id] = Running(pid, address)
            self._own_host.watch(follower_id, running)
            if self._is_up:
                self._hand_over(follower_id, running)

    def interrupt(self) -> None:
        """Have calls that wait give up; any thread."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def release(self) -> None:
        """Leave running followers alone from now on."""
        self._released = True

    def stop(self) -> None:
        """Kill all followers, and end the child and Ray with it."""
        with self._changed:
            if self._stopping:
                return
            self._stopping = True
            running = {} if self._released else dict(self._running)
        for follower_id in running:
            self.kill(follower_id)
        self._own_host.await_gone(running.values())
        with self._changed:
            if self._child is not None:
                self._child.hang_up()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_STOP_S)

    # ---- the child; on a thread of its own ----

    def _keep(self) -> None:
        """Start one child after the other."""
        backoff_s, tries = _FIRST_BACKOFF_S, 0
        while not self._stopping:
            began, tries = time.monotonic(), tries + 1
            refusal = self._live_through_child()
            with self._changed:
                if self._came is None and (tries == _FIRST_TRIES or not refusal.may_pass):
                    code, why = refusal.exit_code, refusal.reason
                    self._came = errors.of(code, why, otherwise=ClusterError)
                    self._changed.notify_all()
                    return
                if time.monotonic() - began > _LONGEST_BACKOFF_S:
                    backoff_s = _FIRST_BACKOFF_S
                self._changed.wait_for(lambda: self._stopping, backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    def _live_through_child(self) -> CannotJoin:
        """Start a child and take its news until it ends; why it did."""
        with self._changed:
            child = self._child = RayChild(
                self._settings,
                environ=self._environ,
                folder=self._run_dir,
                again=self._came is not None,
            )
            self._born = self._heard = time.monotonic()
            self._killed_because = ""
        refusal = None
        for news in child.news():
            self._heard = time.monotonic()
            if isinstance(news, CannotJoin):
                refusal = news
            else:
                self._take(news)
        code = child.bury()
        refusal = refusal or CannotJoin(
            reason=self._killed_because or f"its driver ended with code {code}",
            exit_code=ClusterError.exit_code,
            may_pass=True,
        )
        self._went(refusal.reason)
        return refusal

    def _watch_child(self) -> None:
        """End a child that hangs, or whose Ray does; the next one starts another Ray."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._stopping, _LOOK_S):
                if self._child is not None and not self._killed_because:
                    self._killed_because = self._hang()
                    if self._killed_because:
                        self._child.kill()

    def _hang(self) -> str:
        """What shows that Ray does nothing any more, if it is so."""
        now, limit_s = time.monotonic(), self._settings.join_s + _OVERDUE_S
        if now - self._heard > _SILENT_S:
            return f"its driver was silent for {now - self._heard:.0f} s"
        if not self._is_up and now - self._born > 2 * self._settings.join_s + _COME_S:
            return f"its driver did not come up within {now - self._born:.0f} s"
        for follower_id, launch in self._waiting().items():
            if now - launch.sent > limit_s:
                return f"it did not start follower {follower_id} within {limit_s:g} s"
        return ""

    def _waiting(self) -> dict[str, _Launch]:
        """Launches that the child was told of and has not answered."""
        return {
            who: each for who, each in self._launches.items() if each.sent and each.answer is None
        }

    def _take(self, news: AnyNews) -> None:
        match news:
            case Alive():
                pass
            case Came():
                self._came_up(news)
            case Surveyed():
                with self._changed:
                    self._survey.nodes = news.nodes
                    self._changed.notify_all()
            case Launched() | NotLaunched():
                self._answered(news)
            case Ended():
                self._ended(news.exit)
            case Unwatched():
                who, why = news.follower_id, news.reason
                _log.warning("the agent of follower %s is gone, the follower is not: %s", who, why)
                with self._changed:
                    if who in self._running:
                        self._own_host.watch(who, self._running[who])

    def _came_up(self, news: Came) -> None:
        with self._changed:
            if self._came is not None:
                self._restarts += 1
                _log.info("Ray is back after %.1f s", time.monotonic() - self._since)
            self._came = news.nodes
            self._is_up, self._since = True, time.monotonic()
            for follower_id, running in self._running.items():
                self._hand_over(follower_id, running)
            self._changed.notify_all()

    def _went(self, reason: str) -> None:
        with self._changed:
            if self._is_up:
                self._is_up, self._since = False, time.monotonic()
            self._trouble = reason
            if self._stopping:
                return
            _log.warning("Ray is away and is started again; followers go on: %s", reason)
            for follower_id, running in self._running.items():
                self._own_host.watch(follower_id, running)
            for follower_id, launch in self._waiting().items():
                # If it was started all the same, it is refused when it says hello.
                launch.answer = NotLaunched(
                    follower_id=follower_id,
                    reason="Ray went away while it was being started",
                    exit_code=ClusterError.exit_code,
                )
            self._changed.notify_all()

    # ---- followers ----

    def _await(self, follower_id: str, condition: Callable[[], bool]) -> None:
        """Wait, under the lock, as long as the launch is wanted.

        Raises:
            ClusterError: it is not wanted any more.
        """
        self._changed.wait_for(
            lambda: self._interrupted or follower_id not in self._launches or condition()
        )
        if self._interrupted or follower_id not in self._launches:
            raise ClusterError(f"follower {follower_id} is not started: it is not wanted any more")

    def _answered(self, news: Launched | NotLaunched) -> None:
        with self._changed:
            launch = self._launches.get(news.follower_id)
            if isinstance(news, Launched):
                self._running[news.follower_id] = Running(news.pid, news.address)
            if launch is not None:
                launch.answer = news
                if isinstance(news, Launched) and news.address == self._settings.address:
                    self._given.add(launch.spec.place)
            self._changed.notify_all()
        if launch is None:
            self.kill(news.follower_id)

    def _ended(self, news: FollowerExit) -> None:
        """A follower's end; agents and this host's own watch may both tell of it."""
        with self._changed:
            known = self._running.pop(news.follower_id, None)
            self._changed.notify_all()
        if known is not None and not self._stopping:
            self._on_exit(news)

    def _hand_over(self, follower_id: str, running: Running) -> None:
        """Have an agent watch a follower that runs, and kill it if that is due."""
        assert self._child is not None
        self._child.send(Adopt(follower_id=follower_id, pid=running.pid, address=running.address))
        if running.killed:
            self._child.send(Kill(follower_id=follower_id))


def _environ(settings: RaySettings, group_token: str, run_dir: Path) -> dict[str, str]:
    """What Ray and its driver must know; TLS is for a Ray of ours that others reach."""
    loopback = settings.address.startswith("127.")
    environ = ray_environment(group_token, loopback=loopback)
    if not loopback and not settings.existing:
        environ |= GroupTls(group_token, run_dir / "tls", address=settings.address).environ
    return environ
