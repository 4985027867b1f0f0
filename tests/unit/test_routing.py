import random

from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.routing import CHUNK_TOKENS, Beginnings, Router, Wanted

LONG = range(10 * CHUNK_TOKENS)


def wanted(name: str = "a", tokens=LONG, *, most_left: int = 10, **more) -> Wanted:
    return Wanted(name=name, tokens=list(tokens), most_left=most_left, **more)


def router(*groups: int, cache_tokens: int = 100_000) -> Router:
    made = Router()
    for group in groups:
        made.engine_came(group, cache_tokens=cache_tokens)
    return made


def send(router: Router, group: int, request: Wanted) -> None:
    router.sent(group, request, request.keys())


def cheapest(router: Router, request: Wanted, groups=(0, 1)) -> int:
    return min(groups, key=lambda group: router.cost(group, request, request.keys()))


def test_keys_stand_for_all_tokens_up_to_their_chunks_end():
    keys = wanted(tokens=range(3 * CHUNK_TOKENS + 1)).keys()
    assert len(keys) == 3
    assert wanted(tokens=[*range(2 * CHUNK_TOKENS), *([7] * CHUNK_TOKENS)]).keys()[:2] == keys[:2]
    assert not set(keys) & set(wanted(tokens=range(1, 3 * CHUNK_TOKENS)).keys())
    assert not set(keys) & set(wanted(root="another salt").keys())


def test_a_request_goes_where_its_beginning_is_cached():
    fleet = router(0, 1)
    send(fleet, 1, wanted("first"))
    fleet.left("first")
    assert cheapest(fleet, wanted("second")) == 1


def test_unless_that_group_is_busier_by_more_than_the_beginning_saves():
    fleet = router(0, 1)
    send(fleet, 1, wanted("first"))
    fleet.left("first")
    send(fleet, 1, wanted("other", tokens=range(5000, 5000 + len(LONG) - 11)))
    assert cheapest(fleet, wanted("second")) == 1
    send(fleet, 1, wanted("more", tokens=range(9000, 9020)))
    assert cheapest(fleet, wanted("second")) == 0


def test_an_unknown_beginning_goes_to_the_fewest_outstanding_tokens_not_requests():
    fleet = router(0, 1)
    send(fleet, 0, wanted("long", tokens=range(2000, 4000)))
    for name in ("a", "b", "c"):
        send(fleet, 1, wanted(name, tokens=range(20)))
    assert cheapest(fleet, wanted("next", tokens=range(8000, 8100))) == 1


def test_a_prefilled_prompt_is_no_load_any_more():
    fleet = router(0)
    send(fleet, 0, wanted(most_left=7))
    assert fleet.load(0) == len(LONG) + 7
    fleet.began("a")
    fleet.began("a")
    assert fleet.load(0) == 7
    fleet.left("a")
    assert fleet.load(0) == 0


def test_an_output_is_expected_to_be_as_long_as_outputs_are():
    fleet = router(0)
    for _ in range(400):
        fleet.ended(0, wanted(), num_output=20)
    send(fleet, 0, wanted("next", tokens=[1], most_left=5000))
    assert 20 <= fleet.load(0) - 1 < 21


def test_a_conversation_goes_where_its_last_answer_is_cached():
    fleet = router(0, 1)
    turn = wanted("turn", tokens=[*LONG, *range(7000, 7000 + CHUNK_TOKENS)])
    fleet.ended(1, turn, num_output=CHUNK_TOKENS)
    keys = wanted("next", tokens=[*turn.tokens, 1, 2, 3]).keys()
    assert fleet.cost(0, turn, keys) - fleet.cost(1, turn, keys) == len(turn.tokens)


def test_a_session_stays_with_its_group_loosely():
    fleet = router(0, 1)
    send(fleet, 1, wanted("first", tokens=range(40), session="s"))
    fleet.left("first")
    assert cheapest(fleet, wanted("next", tokens=range(100, 140), session="s")) == 1
    assert cheapest(fleet, wanted("next", tokens=range(100, 140), session="t")) == 0
    send(fleet, 1, wanted("busy", tokens=range(300, 400)))
    assert cheapest(fleet, wanted("next", tokens=range(100, 140), session="s")) == 0


def test_what_a_lost_group_cached_is_forgotten():
    fleet = router(0, 1)
    send(fleet, 1, wanted("first"))
    fleet.left("first")
    fleet.forget(1)
    assert cheapest(fleet, wanted("second")) == 0


def test_a_group_that_caches_nothing_is_not_preferred():
    fleet = router(0, 1, cache_tokens=0)
    send(fleet, 1, wanted("first"))
    fleet.left("first")
    assert fleet.cost(0, wanted("second"), wanted().keys()) == fleet.cost(
        1, wanted(), wanted().keys()
    )


def test_memory_is_bounded_and_ends_are_forgotten_before_beginnings():
    held = Beginnings(4 * CHUNK_TOKENS)
    held.note([1, 2, 3, 4])
    held.note([11, 12])
    assert len(held) == 4
    assert held.cached_tokens([1, 2, 3, 4]) == 2 * CHUNK_TOKENS
    assert held.cached_tokens([11, 12, 13]) == 2 * CHUNK_TOKENS


@given(seed=st.integers(0, 2**32))
def test_loads_end_at_nothing_whatever_happens_in_between(seed):
    dice, fleet, open_ = random.Random(seed), router(0, 1, 2, cache_tokens=1000), []
    for number in range(120):
        act = dice.random()
        if act < 0.5 or not open_:
            start = dice.randrange(0, 300, 50)
            asked = wanted(
                str(number),
                tokens=range(start, start + dice.randrange(1, 400)),
                most_left=dice.randrange(1, 300),
            )
            send(fleet, cheapest(fleet, asked, (0, 1, 2)), asked)
            open_.append(asked.name)
        elif act < 0.7:
            fleet.began(dice.choice(open_))
        elif act < 0.9:
            fleet.left(open_.pop(dice.randrange(len(open_))))
        else:
            fleet.forget(dice.randrange(3))
        assert all(fleet.load(group) >= -1e-6 for group in range(3))
    for name in open_:
        fleet.left(name)
    assert all(abs(fleet.load(group)) < 1e-6 for group in range(3))


def cached_share(num_groups: int, *, cache_tokens: int, routed: bool = True) -> float:
    """Share of prompt tokens found cached, of requests with 30 beginnings, 8 open at a time."""
    dice, fleet = random.Random(5), router(*range(num_groups), cache_tokens=cache_tokens)
    caches = [Beginnings(cache_tokens) for _ in range(num_groups)]
    open_: list[str] = []
    found = total = 0
    for number in range(3000):
        start = 10_000 * min(dice.randrange(30), dice.randrange(30))
        own = range(5_000_000 + 100 * number, 5_000_000 + 100 * number + CHUNK_TOKENS)
        asked = wanted(str(number), tokens=[*range(start, start + 8 * CHUNK_TOKENS), *own])
        groups = range(num_groups)
        group = cheapest(fleet, asked, groups) if routed else number % num_groups
        keys = asked.keys()
        found += caches[group].cached_tokens(keys)
        total += len(asked.tokens)
        caches[group].note(keys)
        send(fleet, group, asked)
        fleet.began(asked.name)
        open_.append(asked.name)
        if len(open_) == 8:
            fleet.left(open_.pop(dice.randrange(8)))
    return found / total


def test_two_groups_find_nearly_as_much_cached_as_one_that_is_twice_as_large():
    each = 16 * 9 * CHUNK_TOKENS
    one_large = cached_share(1, cache_tokens=2 * each)
    assert cached_share(2, cache_tokens=each) > 0.9 * one_large
    assert cached_share(2, cache_tokens=each, routed=False) < 0.9 * one_large
