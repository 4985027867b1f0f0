"""The fleet client over engines in processes of their own, which die in every way there is."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from tests.contract.engine_processes import (
    READY,
    count,
    end_at_once,
    never_ready,
    note_and_end,
    request,
)

from rufus_serve.config import ServeConfig
from rufus_serve.errors import LeaderError, RestartBudgetSpent
from rufus_serve.leader.api.fleet import client
from rufus_serve.leader.api.fleet.client import FleetClient
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.zygote import Zygotes
from rufus_serve.protocol.messages import GroupNews

CONFIG = ServeConfig(model="m", recovery={"backoff_s": 0.01, "max_restarts": 4})
SEVERAL = CONFIG.model_copy(update={"groups": 2})
Scenario = Callable[["Fleet"], Awaitable[None]]


class Fleet:
    """A client, and the tokens that it brought."""

    def __init__(self, client: FleetClient) -> None:
        self.client = client
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self.pid_of(0)

    def pid_of(self, group: int) -> int:
        link = self.client._keepers[group].link
        assert link is not None
        return link.pid

    async def _read(self) -> None:
        while True:
            outputs = await self.client.get_output_async()
            for output in outputs.outputs:
                assert output.request_id not in self.ended
                self.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
                if output.finish_reason is not None:
                    self.ended[output.request_id] = str(output.finish_reason)

    async def ask(self, *names: str, max_tokens: int = 60) -> None:
        for name in names:
            await self.client.add_request_async(request(name, max_tokens=max_tokens))

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert not self.reader.done(), self.reader.exception()
            assert time.monotonic() < deadline, (self.tokens, self.ended)
            await asyncio.sleep(0.005)

    async def until_each_began(self, *names: str) -> None:
        await self.until(lambda: all(len(self.tokens.get(name, ())) > 3 for name in names))

    async def assert_all_whole(self, *names: str, max_tokens: int = 60) -> None:
        await self.until(lambda: set(names) <= set(self.ended))
        assert self.tokens == {name: list(range(max_tokens)) for name in names}
        assert self.client.failure() is None


def run(
    scenario: Scenario,
    folder: Path,
    become_engine: Callable[[EngineSpec], None] = count,
    config: ServeConfig = CONFIG,
) -> None:
    zygotes = Zygotes(become_engine)

    async def whole() -> None:
        fleet = FleetClient(zygotes, config, str(folder))
        try:
            assert await fleet.start() == READY
            await scenario(Fleet(fleet))
        finally:
            await asyncio.to_thread(fleet.shutdown, 1.0)

    try:
        asyncio.run(whole())
    finally:
        zygotes.close()
    assert not list(folder.glob("*.input")), "sockets are left"


async def kill(fleet: Fleet) -> None:
    os.kill(fleet.pid, signal.SIGKILL)


async def terminate(fleet: Fleet) -> None:
    os.kill(fleet.pid, signal.SIGTERM)


async def raise_in_the_loop(fleet: Fleet) -> None:
    link = fleet.client._keepers[0].link
    assert link is not None
    with pytest.raises(LeaderError, match="is gone"):
        await link.call("raise_in_the_loop")


async def hang(fleet: Fleet) -> None:
    """As a supervisor finds it that hears nothing of the engine any more."""
    os.kill(fleet.pid, signal.SIGSTOP)
    fleet.client.replace_engine(0, "silent for 10 s")
    fleet.client.replace_engine(0, "silent for 10 s")


@pytest.mark.parametrize("blow", [kill, terminate, raise_in_the_loop, hang])
def test_requests_go_on_in_the_next_engine(
    blow: Callable[[Fleet], Awaitable[None]], tmp_path: Path
) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.ask("a", "b", "c")
        await fleet.until_each_began("a", "b", "c")
        before = fleet.pid
        await blow(fleet)
        await fleet.assert_all_whole("a", "b", "c")
        assert fleet.pid != before
        await fleet.until(lambda: not psutil.pid_exists(before))

    run(scenario, tmp_path)


def test_requests_that_come_while_there_is_no_engine_wait_for_one(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        before = fleet.pid
        await kill(fleet)
        await fleet.until(lambda: not fleet.client._dispatcher._ports)
        await fleet.ask("a")
        await fleet.assert_all_whole("a")
        assert fleet.pid != before

    run(scenario, tmp_path)


def test_an_aborted_request_brings_nothing_more(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.ask("a", max_tokens=10_000)
        await fleet.until_each_began("a")
        await fleet.client.abort_requests_async(["a"])
        seen = len(fleet.tokens["a"])
        await fleet.ask("b")
        await fleet.until(lambda: "b" in fleet.ended)
        assert len(fleet.tokens["a"]) - seen <= 1  # One may lie in the queue already.
        assert not fleet.client.dp_engines_running()

    run(scenario, tmp_path)


def test_a_request_that_kills_engines_fails_and_the_others_end(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.ask("a", "poison", "b")
        await fleet.until(lambda: set(fleet.ended) == {"a", "b", "poison"})
        assert fleet.ended["poison"] == "error"
        assert fleet.tokens["a"] == fleet.tokens["b"] == list(range(60))
        assert fleet.client.failure() is None

    run(scenario, tmp_path)


def test_calls_reach_the_engine_and_their_errors_come_back(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert await fleet.client.get_supported_tasks_async() == ("get_supported_tasks",)
        assert await fleet.client.reset_prefix_cache_async()
        rpc = await fleet.client.collective_rpc_async("x", None, (1,), None)
        assert rpc == ["collective_rpc", "x", None, [1], None]
        with pytest.raises(LeaderError, match="no such method"):
            await fleet.client._call("fail")

    run(scenario, tmp_path)


def test_a_call_fails_when_its_engine_dies(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        calling = asyncio.create_task(fleet.client._call("hang"))
        await asyncio.sleep(0.05)
        await kill(fleet)
        with pytest.raises(LeaderError, match="is gone"):
            await calling

    run(scenario, tmp_path)


def test_an_engine_that_notes_why_none_can_serve_is_believed(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        raise AssertionError("it started")

    with pytest.raises(RestartBudgetSpent, match="no follower will come"):
        run(scenario, tmp_path, note_and_end)


def test_a_first_engine_that_ends_before_it_is_ready_is_an_error(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        raise AssertionError("it started")

    with pytest.raises(LeaderError, match=r"engine of group 0 did not start: process \d+ ended"):
        run(scenario, tmp_path, end_at_once)


def test_an_engine_that_is_never_ready_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(fleet: Fleet) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr(client, "start_limit_s", lambda _: 0.3)
    with pytest.raises(LeaderError, match=r"did not start: not ready after 0\.3 s"):
        run(scenario, tmp_path, never_ready)


def test_it_gives_up_when_one_engine_after_another_dies_without_a_token(tmp_path: Path) -> None:
    first = tmp_path / "first"

    def count_once(spec: EngineSpec) -> None:
        if first.exists():
            end_at_once(spec)
        first.touch()
        count(spec)

    async def scenario(fleet: Fleet) -> None:
        await kill(fleet)
        await fleet.until(lambda: fleet.client.failure() is not None)
        assert "engines died 5 times in a row" in str(fleet.client.failure())

    run(scenario, tmp_path, count_once)


def test_it_gives_up_when_no_engine_can_be_forked_any_more(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none makes another one in between
            for pid in fleet.client._zygotes.pids:
                os.kill(pid, number)
        await kill(fleet)
        await fleet.until(lambda: fleet.client.failure() is not None)
        assert "the processes that fork them are gone" in str(fleet.client.failure())

    run(scenario, tmp_path)


async def both_ready(fleet: Fleet) -> None:
    await fleet.until(lambda: len(fleet.client._dispatcher._ports) == 2)


def lost(group: int) -> GroupNews:
    return GroupNews(group=group, state="lost", reason="killed by signal 9")


@pytest.mark.parametrize("state", ["lost", "out", "failed"])
def test_requests_of_a_closed_group_go_on_in_another(state: str, tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        await fleet.ask("a", "b", "c", "d")
        await fleet.until_each_began("a", "b", "c", "d")
        assert fleet.client.num_in(0) == 2
        fleet.client.take_news(GroupNews(group=0, state=state, reason="a test"))
        assert fleet.client.num_in(0) == 0
        await fleet.assert_all_whole("a", "b", "c", "d")

    run(scenario, tmp_path, config=SEVERAL)


def test_without_room_elsewhere_a_request_waits_for_its_group(tmp_path: Path) -> None:
    names = [str(number) for number in range(2 * READY.max_num_seqs)]

    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        await fleet.ask(*names)
        await fleet.until_each_began(*names)
        fleet.client.take_news(lost(0))
        assert fleet.client.num_in(0) == READY.max_num_seqs
        fleet.client.take_news(GroupNews(group=0, state="open"))
        await fleet.assert_all_whole(*names)

    run(scenario, tmp_path, config=SEVERAL)


def test_an_engines_death_takes_its_group_alone_out(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        await fleet.ask("a", "b")
        await fleet.until_each_began("a", "b")
        other, before = fleet.pid_of(0), fleet.pid_of(1)
        os.kill(before, signal.SIGKILL)
        await fleet.assert_all_whole("a", "b")
        assert fleet.pid_of(0) == other
        await both_ready(fleet)
        assert fleet.pid_of(1) != before

    run(scenario, tmp_path, config=SEVERAL)


def test_calls_reach_every_engine(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        assert await fleet.client._call("x") == [["x"], ["x"]]
        assert fleet.client.engine_ranks_managed == [0, 1]
        for group in (0, 1):
            assert await fleet.client.beat(group) == "collective_rpc"

    run(scenario, tmp_path, config=SEVERAL)


def test_it_serves_when_the_first_engine_is_ready_and_fails_when_none_will_be(
    tmp_path: Path,
) -> None:
    def count_in_one(spec: EngineSpec) -> None:
        if spec.group == 0:
            time.sleep(0.5)
            note_and_end(spec)
        count(spec)

    async def scenario(fleet: Fleet) -> None:
        await fleet.ask("a")
        await fleet.assert_all_whole("a")
        await fleet.until(lambda: fleet.client._keepers[0].failure() is not None)
        assert fleet.client.failure() is None
        fleet.client.take_news(GroupNews(group=1, state="failed", reason="no node"))
        assert fleet.client.failure() is not None

    run(scenario, tmp_path, count_in_one, SEVERAL)


def test_a_group_that_failed_has_an_engine_again_when_it_is_formed_anew(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        fleet.client.take_news(GroupNews(group=1, state="failed", reason="no node"))
        fleet.client.take_news(lost(0))
        await fleet.ask("a")
        fleet.client.take_news(GroupNews(group=1, state="out"))
        fleet.client.take_news(GroupNews(group=1, state="open"))
        await fleet.assert_all_whole("a")

    run(scenario, tmp_path, config=SEVERAL)


def test_a_group_may_come_and_have_requests(tmp_path: Path) -> None:
    new: list[int] = []

    async def scenario(fleet: Fleet) -> None:
        fleet.client.on_new_group = new.append
        fleet.client.take_news(lost(1))
        await both_ready(fleet)
        assert (fleet.client.groups, new) == ((0, 1), [1])
        await fleet.ask("a", "b")
        assert fleet.client.num_in(1) == 0, "its followers are not ready"
        fleet.client.take_news(GroupNews(group=1, state="open"))
        await fleet.ask("c", "d")
        assert fleet.client.num_in(1) == 2
        await fleet.assert_all_whole("a", "b", "c", "d")

    run(scenario, tmp_path)


def test_a_group_may_go_and_its_engine_ends(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await both_ready(fleet)
        before = fleet.pid_of(1)
        await fleet.ask("a", "b")
        await fleet.until_each_began("a", "b")
        fleet.client.take_news(GroupNews(group=1, state="gone"))
        fleet.client.take_news(GroupNews(group=1, state="gone"))
        assert fleet.client.groups == (0,)
        await fleet.assert_all_whole("a", "b")
        await fleet.until(lambda: not psutil.pid_exists(before))
        fleet.client.replace_engine(1, "the supervisor did not know yet")
        with pytest.raises(LeaderError, match="group 1 has no engine"):
            await fleet.client.beat(1)
        fleet.client.take_news(GroupNews(group=1, state="lost"))
        fleet.client.take_news(GroupNews(group=1, state="open"))
        await both_ready(fleet)
        assert fleet.pid_of(1) != before
        fleet.client.take_news(lost(0))
        await fleet.ask("e")
        await fleet.until(lambda: "e" in fleet.ended)

    run(scenario, tmp_path, config=SEVERAL)
