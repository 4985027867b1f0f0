import pytest
from fake_engines import FakeEngine, FrontEnd, continuation, forged, outputs, request


@pytest.fixture
def front() -> FrontEnd:
    return FrontEnd()


def with_engine(front: FrontEnd) -> FakeEngine:
    engine = FakeEngine()
    front.dispatcher.add_port(engine)
    return engine


def kill(front: FrontEnd, engine: FakeEngine) -> FakeEngine:
    """The engine dies; the next one, that took in what waited."""
    engine.kill()
    front.dispatcher.lose_port(engine)
    successor = with_engine(front)
    successor.settle(front.dispatcher)
    return successor


def test_a_request_that_comes_before_its_engine_waits_for_it(front):
    front.dispatcher.add(request("a"))
    with_engine(front).run(front.dispatcher, 8)
    assert front.tokens == {"a": continuation((1, 2), 8)}


def test_a_request_goes_on_after_what_a_dead_engine_delivered(front):
    first = with_engine(front)
    front.dispatcher.add(request("a"))
    first.run(front.dispatcher, 3)
    kill(front, first).run(front.dispatcher, 5)
    assert front.tokens == {"a": continuation((1, 2), 8)}
    assert front.ended == {"a": "length"}
    assert front.dispatcher.num_open == 0


def test_what_a_dead_engine_computed_and_did_not_deliver_is_computed_again(front):
    first = with_engine(front)
    front.dispatcher.add(request("a"))
    first.settle(front.dispatcher)
    first.step()
    kill(front, first).run(front.dispatcher, 8)
    first.deliver_one(front.dispatcher)  # too late
    assert front.tokens == {"a": continuation((1, 2), 8)}


def test_those_that_had_begun_go_first_and_the_oldest_before_all(front):
    first = with_engine(front)
    for at, name in enumerate(["oldest", "older"]):
        front.dispatcher.add(request(name, at=at))
    first.run(front.dispatcher, 1)
    for at, name in enumerate(["waiting", "last"]):
        front.dispatcher.add(request(name, at=10 + at))
    order = [wire_id.split("~")[0] for wire_id in kill(front, first).running]
    assert order == ["oldest", "older", "waiting", "last"]


def test_an_engine_that_ends_by_itself_ends_no_request(front):
    first = with_engine(front)
    front.dispatcher.add(request("a"))
    first.run(front.dispatcher, 2)
    first.end_by_itself()
    first.settle(front.dispatcher)
    assert (front.ended, first.running, first._inbox) == ({}, {}, [])
    kill(front, first).run(front.dispatcher, 6)
    assert front.tokens == {"a": continuation((1, 2), 8)}


def test_an_aborted_request_is_aborted_in_its_engine_and_brings_nothing_more(front):
    engine = with_engine(front)
    front.dispatcher.add(request("a"))
    engine.run(front.dispatcher, 2)
    engine.step()
    front.dispatcher.abort(["a", "unknown"])
    engine.settle(front.dispatcher)
    assert (len(front.tokens["a"]), engine.running) == (2, {})


def test_an_aborted_request_that_waits_is_never_sent(front):
    front.dispatcher.add(request("a"))
    front.dispatcher.abort(["a"])
    engine = with_engine(front)
    engine.settle(front.dispatcher)
    assert engine.running == {}


def test_a_client_cannot_claim_that_tokens_were_delivered(front):
    front.dispatcher.add(forged("a", [7, 7, 7]))
    with_engine(front).run(front.dispatcher, 8)
    assert front.tokens == {"a": continuation((1, 2), 8)}


def test_statistics_pass_with_the_number_of_their_group(front):
    front.dispatcher.take(FakeEngine(group=3), outputs(stats="of three"))
    front.dispatcher.take(FakeEngine(group=3), outputs())
    assert front.stats == [(3, "of three")]


def test_a_request_that_kills_every_engine_fails_alone(front):
    """`poison` kills before it brings a token; the others end as if it had not been."""
    engine = with_engine(front)
    names = ["a", "b", "poison", "c"]
    for at, name in enumerate(names):
        front.dispatcher.add(request(name, at=at))
    deaths = 0
    for _ in range(100):
        engine.settle(front.dispatcher)
        if any(wire_id.startswith("poison") for wire_id in engine.running):
            engine = kill(front, engine)
            deaths += 1
        else:
            engine.run(front.dispatcher)
    assert deaths <= 3
    assert "engines died" in front.errors.pop("poison")
    assert front.errors == {}
    innocent = {name: front.tokens[name] for name in names if name != "poison"}
    assert innocent == dict.fromkeys(innocent, continuation((1, 2), 8))


def test_engines_that_die_of_something_else_fail_no_request_that_got_far(front):
    engine = with_engine(front)
    front.dispatcher.add(request("a", max_tokens=400))
    for _ in range(20):
        engine.run(front.dispatcher, 20)
        engine = kill(front, engine)
    assert front.tokens == {"a": continuation((1, 2), 400)}


def test_a_request_is_moved_a_bounded_number_of_times(front):
    engine = with_engine(front)
    front.dispatcher.add(request("a", max_tokens=400))
    for _ in range(20):
        engine.run(front.dispatcher, 1)
        engine = kill(front, engine)
    assert front.ended == {"a": "error"}
    assert len(front.tokens["a"]) == 5
