"""Random histories of requests, aborts, deaths and moves: no token is lost or comes twice."""

import random

from fake_engines import FakeEngine, FrontEnd, continuation, request
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.leader.api.fleet.flight import Capacity

SMALL = Capacity(sequences=3, tokens=120)


class History:
    """Engines that are slow in every direction, and die."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.front = FrontEnd()
        self.engines: list[FakeEngine] = []
        self.wanted: dict[str, list[int]] = {}
        self.aborted: set[str] = set()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def ask(self, name: str, at: int) -> None:
        limit = self.random.randrange(1, 40)
        prompt = [self.random.randrange(50) for _ in range(self.random.randrange(1, 8))]
        self.wanted[name] = continuation(prompt, limit)
        self.front.dispatcher.add(request(name, prompt, max_tokens=limit, at=at))

    def abort(self) -> None:
        name = self.random.choice(list(self.wanted))
        if name not in self.front.ended:
            self.aborted.add(name)
        self.front.dispatcher.abort([name])

    def kill(self) -> None:
        dead = self.engines.pop(self.random.randrange(len(self.engines)))
        dead.kill()
        self.front.dispatcher.lose_port(dead)

    def start(self) -> None:
        self.engines.append(FakeEngine())
        self.front.dispatcher.add_port(self.engines[-1])

    def move_a_little(self) -> None:
        for engine in self.engines:
            if self.chance(0.6):
                engine.receive_one()
            engine.step(only=self.random)
            if self.chance(0.5):
                engine.deliver_one(self.front.dispatcher)

    def finish(self) -> None:
        if not self.engines:
            self.start()
        for _ in range(100):
            for engine in self.engines:
                engine.run(self.front.dispatcher)

    def assert_all_whole(self) -> None:
        front = self.front
        for name, tokens in self.wanted.items():
            got = front.tokens.get(name, [])
            cut_short = name in self.aborted or name in front.errors
            assert got == (tokens[: len(got)] if cut_short else tokens), name
        assert front.dispatcher.num_open == 0
        assert not front.dispatcher._by_wire_id
        assert not front.dispatcher._waiting
        assert not front.dispatcher._on_trial


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whatever_dies_and_whenever_every_request_gets_its_tokens_once(seed):
    history = History(seed)
    for tick in range(250):
        if tick < 150 and history.chance(0.3):
            history.ask(f"r{tick}", tick)
        if history.wanted and history.chance(0.02):
            history.abort()
        if history.engines and history.chance(0.03):
            history.kill()
        if len(history.engines) < 3 and history.chance(0.05):
            history.start()
        history.move_a_little()
    history.finish()
    history.assert_all_whole()


class GroupsHistory(History):
    """Groups that are lost, drained and taken back, and whose engines die and are replaced."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.closed: set[int] = set()
        for group in range(3):
            self.start_in(group)

    def start_in(self, group: int) -> None:
        self.engines.append(FakeEngine(group, capacity=SMALL))
        self.front.dispatcher.add_port(self.engines[-1])

    def close(self) -> None:
        group = self.random.randrange(3)
        self.closed.add(group)
        self.front.dispatcher.close(group, lost=self.chance(0.5))

    def open(self) -> None:
        group = self.random.choice(sorted(self.closed))
        self.closed.discard(group)
        self.front.dispatcher.open(group)

    def start_missing(self) -> None:
        for group in {0, 1, 2} - {engine.group for engine in self.engines}:
            self.start_in(group)

    def move_a_little(self) -> None:
        running = [engine for engine in self.engines if engine.group not in self.closed]
        everyone, self.engines = self.engines, running
        super().move_a_little()
        self.engines = everyone

    def finish(self) -> None:
        self.start_missing()
        while self.closed:
            self.open()
        super().finish()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whichever_group_comes_and_goes_every_request_gets_its_tokens_once(seed):
    history = GroupsHistory(seed)
    for tick in range(250):
        if tick < 150 and history.chance(0.3):
            history.ask(f"r{tick}", tick)
        if history.wanted and history.chance(0.02):
            history.abort()
        if history.engines and history.chance(0.02):
            history.kill()
        if history.chance(0.1):
            history.start_missing()
        if history.chance(0.06):
            history.close()
        if history.closed and history.chance(0.1):
            history.open()
        history.move_a_little()
    history.finish()
    history.assert_all_whole()
    assert all(abs(history.front.dispatcher._router.load(group)) < 1e-6 for group in range(3))


class ScaledHistory(GroupsHistory):
    """The last of the groups also go for good, with what they have, and come again."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.gone: set[int] = set()

    def go(self) -> None:
        self.gone.add(2)
        self.closed.discard(2)
        self.front.dispatcher.close(2, lost=False, for_good=True)
        for engine in [each for each in self.engines if each.group == 2]:
            self.engines.remove(engine)
            engine.kill()
            self.front.dispatcher.lose_port(engine)

    def come(self) -> None:
        self.gone.clear()
        self.front.dispatcher.close(2, lost=True)
        self.closed.add(2)
        self.start_in(2)

    def start_missing(self) -> None:
        for group in {0, 1, 2} - self.gone - {engine.group for engine in self.engines}:
            self.start_in(group)

    def close(self) -> None:
        group = self.random.randrange(2)
        self.closed.add(group)
        self.front.dispatcher.close(group, lost=self.chance(0.5))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whichever_group_is_added_and_taken_away_every_request_gets_its_tokens_once(seed):
    history = ScaledHistory(seed)
    for tick in range(250):
        if tick < 150 and history.chance(0.3):
            history.ask(f"r{tick}", tick)
        if history.engines and history.chance(0.02):
            history.kill()
        if history.chance(0.1):
            history.start_missing()
        if history.chance(0.04):
            history.close()
        if history.closed and history.chance(0.1):
            history.open()
        if history.chance(0.05):
            history.come() if history.gone else history.go()
        history.move_a_little()
    history.finish()
    history.assert_all_whole()
