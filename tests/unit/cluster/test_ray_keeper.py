"""A stand-in for the Ray child tells what the test wants it to."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from rufus_serve.cluster import own_host, ray_keeper
from rufus_serve.cluster.base import FollowerExit, NodeInfo
from rufus_serve.cluster.ray_keeper import RayKeeper
from rufus_serve.cluster.ray_orders import (
    Adopt,
    Came,
    CannotJoin,
    Ended,
    Kill,
    Launch,
    Launched,
    NotLaunched,
    Order,
    RaySettings,
    Survey,
    Surveyed,
    Unwatched,
)
from rufus_serve.errors import ClusterError, ConfigError, HandshakeRefused
from rufus_serve.protocol.specs import FollowerSpec

pytestmark = pytest.mark.timeout(20)

HERE, ELSEWHERE = "127.0.0.1", "10.0.0.9"
NODES = (NodeInfo(host="h", address=HERE, slots=1),)


class StandIn:
    """A child that lives until `die`."""

    def __init__(self, *_: Any, again: bool, **__: Any) -> None:
        self.again = again
        self.orders: queue.Queue[Order] = queue.Queue()
        self._news: queue.Queue[Any] = queue.Queue()

    def tell(self, news: Any) -> None:
        self._news.put(news)

    def die(self, *, last_words: CannotJoin | None = None) -> None:
        if last_words is not None:
            self._news.put(last_words)
        self._news.put(None)

    def next_order(self) -> Order:
        return self.orders.get(timeout=10)

    # What the keeper uses.

    def send(self, order: Order) -> None:
        self.orders.put(order)

    def news(self) -> Iterator[Any]:
        while (news := self._news.get()) is not None:
            yield news

    def hang_up(self) -> None:
        self._news.put(None)

    def kill(self) -> None:
        self._news.put(None)

    def bury(self) -> int:
        return -9


class Watched:
    """In place of `AdoptedProcess`: followers that are watched from here."""

    all: dict[str, Callable[[FollowerExit], None]]

    def __init__(self, follower_id: str, _pid: int, *, on_exit, **_: Any) -> None:
        Watched.all[follower_id] = on_exit


class Started:
    """In place of `FollowerProcess`: followers that are started from here."""

    all: dict[str, tuple[FollowerSpec, Callable[[FollowerExit], None]]]
    pid = 99

    def __init__(self, spec: FollowerSpec, *, on_exit, **_: Any) -> None:
        Started.all[spec.follower_id] = (spec, on_exit)


class Stage:
    """A keeper, its children one after the other, and the exits it told of."""

    def __init__(self, tmp_path) -> None:
        self.children: queue.Queue[StandIn] = queue.Queue()
        self.exits: queue.Queue[FollowerExit] = queue.Queue()
        self.killed: list[int] = []
        settings = RaySettings(
            followers=2, spread=True, address=HERE, port=0, existing="", join_s=60.0, python="",
            log_dir="", local_slots=1,
        )  # fmt: skip
        self.keeper = RayKeeper(settings, group_token="t" * 64, run_dir=tmp_path)
        self.pool = ThreadPoolExecutor(8)
        self.starting = self.pool.submit(self.keeper.start, self.exits.put)
        self.child = self.next_child()

    def next_child(self) -> StandIn:
        self.child = self.children.get(timeout=10)
        return self.child

    def come(self) -> "Stage":
        self.child.tell(Came(nodes=NODES))
        assert self.starting.result(10) == NODES
        return self

    def launch(self, follower_id: str) -> "Future[None]":
        """Of the rank that the id begins with: rank 0's place is on this host."""
        spec = FollowerSpec(
            config={"nodes": 2}, node_rank=int(follower_id[0]), follower_id=follower_id,
            control_endpoint="e", token="t", step_port=5,
        )  # fmt: skip
        return self.pool.submit(self.keeper.launch, spec)

    def run(self, follower_id: str, *, pid: int, address: str) -> None:
        launching = self.launch(follower_id)
        assert isinstance(self.child.next_order(), Launch)
        self.child.tell(Launched(follower_id=follower_id, pid=pid, address=address))
        launching.result(10)

    def come_back(self) -> StandIn:
        """The child dies and another one is there."""
        self.child.die()
        self.next_child().tell(Came(nodes=NODES))
        return self.child


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Iterator[Stage]:
    made: list[Stage] = []

    def start_child(*given: Any, **named: Any) -> StandIn:
        child = StandIn(*given, **named)
        ready.wait(10)
        made[0].children.put(child)
        return child

    ready = threading.Event()
    Watched.all, Started.all = {}, {}
    monkeypatch.setattr(ray_keeper, "RayChild", start_child)
    monkeypatch.setattr(own_host, "AdoptedProcess", Watched)
    monkeypatch.setattr(own_host, "FollowerProcess", Started)
    monkeypatch.setattr(own_host, "is_follower", lambda _: True)
    monkeypatch.setattr(ray_keeper, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(ray_keeper, "_LOOK_S", 0.01)
    monkeypatch.setattr(own_host, "await_gone", list)
    monkeypatch.setattr(own_host, "kill_session", lambda pid: stage.killed.append(pid))  # noqa: PLW0108
    stage = Stage.__new__(Stage)
    made.append(stage)
    ready.set()
    stage.__init__(tmp_path)  # type: ignore[misc]
    yield stage
    stage.keeper.interrupt()
    stage.keeper.stop()
    stage.pool.shutdown()


def test_it_is_there_once_the_child_has_joined(stage):
    assert not stage.keeper.health.up
    stage.come()
    assert (stage.keeper.health.up, stage.keeper.health.restarts) == (True, 0)
    assert not stage.child.again


def test_a_first_start_that_another_try_would_not_mend_fails_by_its_own_error(stage):
    words = CannotJoin(reason="another token", exit_code=HandshakeRefused.exit_code, may_pass=False)
    stage.child.die(last_words=words)
    with pytest.raises(HandshakeRefused, match="another token"):
        stage.starting.result(10)


def test_ray_may_be_killed_while_it_starts_but_not_for_ever(stage):
    stage.child.die()
    stage.next_child().die()
    assert not stage.starting.done()
    stage.next_child().die()
    with pytest.raises(ClusterError, match="its driver ended with code -9"):
        stage.starting.result(10)


def test_a_launch_that_fails_says_why(stage):
    stage.come()
    launching = stage.launch("0.1")
    stage.child.next_order()
    code = ConfigError.exit_code
    stage.child.tell(NotLaunched(follower_id="0.1", reason="no interpreter", exit_code=code))
    with pytest.raises(ConfigError, match="no interpreter"):
        launching.result(10)


def test_room_is_what_ray_says_there_is_now(stage):
    stage.come()
    asking = stage.pool.submit(stage.keeper.make_room, 2)
    assert isinstance(stage.child.next_order(), Survey)
    nodes = (*NODES, NodeInfo(host="i", address=ELSEWHERE, slots=1))
    stage.child.tell(Surveyed(nodes=(*nodes, *nodes)))
    assert asking.result(10) == nodes


def test_it_is_told_on_which_hosts_a_follower_is_missing(stage):
    stage.come()
    asking = stage.pool.submit(stage.keeper.make_room, 2)
    assert isinstance(stage.child.next_order(), Survey)
    stage.child.tell(Surveyed(nodes=NODES))
    said = r"2 followers need a node each; there are 1: h \(127.0.0.1\); run `rufus-serve follower"
    with pytest.raises(ClusterError, match=said):
        asking.result(10)


def test_there_is_no_room_while_ray_is_away(stage):
    with pytest.raises(ClusterError, match="Ray is away now"):
        stage.keeper.make_room(1)
    stage.come()
    asking = stage.pool.submit(stage.keeper.make_room, 1)
    assert isinstance(stage.child.next_order(), Survey)
    stage.come_back()
    with pytest.raises(ClusterError, match="Ray is away now"):
        asking.result(10)


@pytest.mark.parametrize("limit", ["_SILENT_S", "_OVERDUE_S"])
def test_a_child_that_hangs_is_replaced_and_so_is_what_it_was_to_launch(stage, monkeypatch, limit):
    stage.come()
    launching = stage.launch("0.1")
    hung = stage.child
    assert isinstance(hung.next_order(), Launch)
    with monkeypatch.context() as hanging:
        hanging.setattr(ray_keeper, limit, -60.0)
        next_child = stage.next_child()
    with pytest.raises(ClusterError, match="Ray went away while it was being started"):
        launching.result(10)
    said = "it did not start follower 0.1" if limit == "_OVERDUE_S" else "its driver was silent"
    assert said in stage.keeper.health.detail
    assert next_child is not hung


def test_a_child_that_never_comes_up_is_replaced(stage, monkeypatch):
    with monkeypatch.context() as hanging:
        hanging.setattr(ray_keeper, "_COME_S", -120.0)
        stage.next_child()
    assert "did not come up" in stage.keeper.health.detail
    stage.come()


def test_a_launch_on_another_host_waits_until_ray_is_back(stage):
    stage.come().child.die()
    stage.next_child()
    launching = stage.launch("1.1")
    assert not launching.done()
    stage.child.tell(Came(nodes=NODES))
    assert isinstance(stage.child.next_order(), Launch)
    stage.child.tell(Launched(follower_id="1.1", pid=7, address=ELSEWHERE))
    assert launching.result(10) is None
    assert stage.keeper.health.restarts == 1
    assert stage.child.again
    assert not Started.all


def test_a_launch_on_this_host_does_not_wait_for_ray(stage):
    stage.come().child.die()
    child = stage.next_child()
    stage.launch("0.1").result(10)
    spec, on_exit = Started.all["0.1"]
    assert (spec.address, spec.step_port) == (HERE, 5)
    child.tell(Came(nodes=NODES))
    assert child.next_order() == Adopt(follower_id="0.1", pid=Started.pid, address=HERE)
    assert not Watched.all
    on_exit(FollowerExit(follower_id="0.1", code=-9))
    assert stage.exits.get(timeout=10).code == -9


def test_a_place_on_this_host_that_ray_gave_is_filled_again_without_asking(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.child.tell(Ended(exit=FollowerExit(follower_id="0.1", code=-9)))
    stage.exits.get(timeout=10)
    stage.launch("0.2").result(10)
    assert list(Started.all) == ["0.2"]
    assert stage.child.next_order() == Adopt(follower_id="0.2", pid=Started.pid, address=HERE)


def test_a_host_that_is_full_starts_no_other(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.launch("0.2")
    assert isinstance(stage.child.next_order(), Launch)
    assert not Started.all


def test_a_launch_under_way_when_ray_goes_is_given_up(stage):
    launching = stage.come().launch("0.1")
    stage.child.next_order()
    stage.child.die()
    with pytest.raises(ClusterError, match="Ray went away"):
        launching.result(10)


def test_a_launch_that_is_not_wanted_any_more_ends(stage):
    stage.come().child.die()
    stage.next_child()
    launching = stage.launch("1.1")
    while "1.1" not in stage.keeper._launches:
        pass
    stage.keeper.kill("1.1")
    with pytest.raises(ClusterError, match="not wanted any more"):
        launching.result(10)


def test_a_follower_that_came_too_late_is_killed(stage):
    stage.come()
    stage.child.tell(Launched(follower_id="0.1", pid=7, address=HERE))
    assert stage.child.next_order() == Kill(follower_id="0.1")
    assert stage.killed == [7]


def test_followers_are_handed_over_to_the_next_child(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.run("1.2", pid=8, address=ELSEWHERE)
    child = stage.come_back()
    assert child.next_order() == Adopt(follower_id="0.1", pid=7, address=HERE)
    assert child.next_order() == Adopt(follower_id="1.2", pid=8, address=ELSEWHERE)
    assert stage.exits.empty()


def test_only_followers_on_this_host_are_watched_from_here_while_ray_is_away(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.run("1.2", pid=8, address=ELSEWHERE)
    stage.come_back().next_order()
    assert list(Watched.all) == ["0.1"]


def test_the_end_of_a_follower_is_told_once(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.come_back().next_order()
    news = FollowerExit(follower_id="0.1", code=-9)
    Watched.all["0.1"](news)
    stage.child.tell(Ended(exit=news))
    stage.run("1.2", pid=9, address=ELSEWHERE)
    assert stage.exits.get(timeout=10) == news
    assert stage.exits.empty()


def test_a_follower_whose_agent_died_is_watched_from_here(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.child.tell(Unwatched(follower_id="0.1", reason="actor died"))
    stage.run("1.2", pid=8, address=ELSEWHERE)
    assert list(Watched.all) == ["0.1"]


def test_a_follower_elsewhere_is_killed_by_its_agent_when_that_is_back(stage):
    stage.come().run("1.2", pid=8, address=ELSEWHERE)
    stage.child.die()
    stage.next_child()
    stage.keeper.kill("1.2")
    stage.child.tell(Came(nodes=NODES))
    assert stage.child.next_order() == Adopt(follower_id="1.2", pid=8, address=ELSEWHERE)
    assert stage.child.next_order() == Kill(follower_id="1.2")
    assert stage.killed == []


def test_an_adopted_follower_is_watched_from_here_and_handed_over(stage):
    stage.come().keeper.adopt("0.1", 7, HERE)
    assert stage.child.next_order() == Adopt(follower_id="0.1", pid=7, address=HERE)
    assert list(Watched.all) == ["0.1"]


def test_stopping_kills_what_runs_unless_it_was_released(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.keeper.stop()
    assert stage.killed == [7]
    stage.keeper.stop()


def test_released_followers_are_left_alone(stage):
    stage.come().run("0.1", pid=7, address=HERE)
    stage.keeper.release()
    stage.keeper.stop()
    assert stage.killed == []
