"""Several groups: what a closed one ran goes on in others that have room."""

import pytest
from fake_engines import FakeEngine, FrontEnd, continuation, request

from rufus_serve.leader.api.fleet.dispatcher import MAX_MOVES
from rufus_serve.leader.api.fleet.flight import Capacity

SMALL = Capacity(sequences=2, tokens=1000)
WHOLE = continuation((1, 2), 8)


class Fleet(FrontEnd):
    """A front end over engines of groups 0, 1, ..."""

    def __init__(self, num_groups: int = 2, capacity: Capacity = SMALL) -> None:
        super().__init__()
        self.engines = [FakeEngine(group, capacity=capacity) for group in range(num_groups)]
        for engine in self.engines:
            self.dispatcher.add_port(engine)

    def ask(self, *names: str, max_tokens: int = 8) -> None:
        for at, name in enumerate(names):
            self.dispatcher.add(request(name, max_tokens=max_tokens, at=at))

    def run(self, *groups: int, steps: int = 1) -> None:
        for _ in range(steps):
            for group in groups:
                self.engines[group].run(self.dispatcher)

    def running(self, group: int) -> list[str]:
        self.engines[group].settle(self.dispatcher)
        return [wire_id.split("~")[0] for wire_id in self.engines[group].running]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_requests_are_spread_over_the_groups(fleet):
    fleet.ask("a", "b", "c", "d")
    assert (fleet.running(0), fleet.running(1)) == (["a", "c"], ["b", "d"])


def test_the_next_request_of_a_session_goes_where_its_last_one_was(fleet):
    fleet.ask("a")
    fleet.dispatcher.add(request("first", session="anna"))
    fleet.run(0, 1, steps=8)
    fleet.dispatcher.add(request("next", session="anna"))
    assert (fleet.running(0), fleet.running(1)) == ([], ["next"])


def test_what_a_lost_group_ran_goes_on_in_another(fleet):
    fleet.ask("a", "b")
    fleet.run(0, 1, steps=3)
    fleet.dispatcher.close(0, lost=True)
    fleet.run(1, steps=5)
    assert fleet.tokens == {"a": WHOLE, "b": WHOLE}
    assert fleet.running(0) == []


def test_how_long_a_request_waited_that_moved_is_counted_by_the_group_it_left(fleet):
    fleet.ask("a", "b")
    fleet.run(0, 1, steps=3)
    fleet.dispatcher.close(0, lost=True)
    fleet.now = 0.4
    fleet.run(1)
    assert {group: times.sum_s for group, times in fleet.dispatcher.moves.items()} == {0: 0.4}
    fleet.now = 9.0
    fleet.run(1, steps=4)
    assert fleet.dispatcher.moves[0].sum_s == 0.4


def test_what_its_engine_still_brings_is_not_delivered_twice(fleet):
    fleet.ask("a", "b")
    fleet.run(0, 1, steps=3)
    fleet.engines[0].step()
    fleet.dispatcher.close(0, lost=True)
    fleet.run(1, steps=5)
    fleet.run(0)
    assert fleet.tokens["a"] == WHOLE


def test_without_room_elsewhere_it_waits_for_its_own_group(fleet):
    fleet.ask("a", "b", "c", "d")
    fleet.run(0, 1, steps=2)
    fleet.dispatcher.close(0, lost=True)
    fleet.run(1)
    assert (fleet.running(0), fleet.running(1)) == (["a", "c"], ["b", "d"])
    fleet.dispatcher.open(0)
    fleet.run(0, 1, steps=6)
    assert fleet.tokens == dict.fromkeys("abcd", WHOLE)


def test_it_goes_on_elsewhere_as_soon_as_there_is_room_the_oldest_first(fleet):
    fleet.ask("a", "b", "c", "d")
    fleet.run(0, 1, steps=2)
    fleet.dispatcher.close(0, lost=True)
    fleet.dispatcher.abort(["d"])
    assert (fleet.running(0), fleet.running(1)) == (["c"], ["a", "b"])
    fleet.run(1, steps=6)
    fleet.run(1, steps=6)
    assert fleet.tokens["c"] == WHOLE


def test_what_has_not_begun_is_requeued_at_once_whether_there_is_room_or_not(fleet):
    fleet.ask("a", "b", "c", "d", "e")
    fleet.dispatcher.close(0, lost=True)
    assert (fleet.running(0), fleet.running(1)) == ([], ["b", "d", "a", "c", "e"])


def test_a_context_too_long_for_the_others_cache_stays():
    fleet = Fleet(capacity=Capacity(sequences=8, tokens=10))
    fleet.ask("a", "b", max_tokens=30)
    fleet.run(0, 1, steps=4)
    fleet.dispatcher.close(0, lost=True)
    assert fleet.running(0) == ["a"]


def test_no_request_goes_to_a_closed_group_and_those_of_none_wait(fleet):
    for group in (0, 1):
        fleet.dispatcher.close(group, lost=True)
    fleet.ask("a", "b")
    assert fleet.running(0) + fleet.running(1) == []
    fleet.dispatcher.open(1)
    assert (fleet.running(0), fleet.running(1)) == ([], ["a", "b"])


def test_a_drained_group_has_nothing_left_once_the_others_have_room(fleet):
    fleet.ask("a", "b", "c", "d")
    fleet.run(0, 1, steps=2)
    fleet.dispatcher.close(0, lost=False)
    assert fleet.dispatcher.num_in(0) == 2
    fleet.run(0, 1, steps=6)
    assert fleet.dispatcher.num_in(0) == 0
    assert fleet.tokens == dict.fromkeys("abcd", WHOLE)


def test_an_engines_death_moves_what_it_ran_to_other_groups(fleet):
    fleet.ask("a", "b")
    fleet.run(0, 1, steps=3)
    fleet.engines[0].kill()
    fleet.dispatcher.lose_port(fleet.engines[0])
    fleet.run(1, steps=5)
    assert fleet.tokens == {"a": WHOLE, "b": WHOLE}


def test_without_room_it_waits_for_its_own_groups_next_engine(fleet):
    fleet.ask("a", "b", "c", "d")
    fleet.run(0, 1, steps=3)
    fleet.engines[0].kill()
    fleet.dispatcher.lose_port(fleet.engines[0])
    assert fleet.running(1) == ["b", "d"]
    fleet.engines[0] = FakeEngine(0, capacity=SMALL)
    fleet.dispatcher.add_port(fleet.engines[0])
    assert fleet.running(0) == ["a", "c"]
    fleet.run(0, 1, steps=5)
    assert fleet.tokens == dict.fromkeys("abcd", WHOLE)


def test_when_a_group_fails_for_good_its_requests_wait_for_no_room(fleet):
    fleet.ask("a", "b", "c", "d")
    fleet.run(0, 1, steps=3)
    fleet.dispatcher.close(0, lost=True, for_good=True)
    assert fleet.running(0) == []
    fleet.run(1, steps=5)
    assert fleet.tokens == dict.fromkeys("abcd", WHOLE)


def test_a_request_is_moved_by_drains_a_stated_number_of_times(fleet):
    fleet.ask("a", max_tokens=400)
    for _ in range(2 * MAX_MOVES):
        fleet.run(0, 1)
        group = 0 if fleet.running(0) else 1
        fleet.dispatcher.close(group, lost=False)
        fleet.dispatcher.open(group)
    (flight,) = fleet.dispatcher._flights.values()
    assert flight.num_moves == MAX_MOVES
    assert fleet.dispatcher.num_open == 1


def test_a_request_that_takes_one_group_after_the_other_with_it_fails_alone():
    fleet = Fleet(num_groups=3, capacity=Capacity(sequences=8, tokens=1000))
    fleet.ask("poison", "b", "c", max_tokens=60)
    losses = 0
    for _ in range(40):
        hit = [group for group in range(3) if "poison" in fleet.running(group)]
        if not hit:
            fleet.run(0, 1, 2)
            continue
        losses += 1
        fleet.dispatcher.close(hit[0], lost=True)
        fleet.run(*({0, 1, 2} - set(hit)), steps=2)
        fleet.dispatcher.open(hit[0])
    assert losses <= 5
    assert fleet.ended["poison"] == "error"
    assert {"b", "c"}.isdisjoint(fleet.errors)
