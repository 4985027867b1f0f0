import pytest

from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.http_error import HttpError
from rufus_serve.leader.api.places import Places

ALICE, BOB = ApiKey(id="alice", sha256="a" * 64), ApiKey(id="bob", sha256="b" * 64)


def refused(places: Places, key: ApiKey, weight: int = 1) -> tuple[int, str]:
    with pytest.raises(HttpError) as error:
        places.check(key, weight)
    return error.value.status, error.value.reason


def take(places: Places, key: ApiKey, weight: int) -> None:
    places.check(key, weight)
    places.take(key.id, weight)


def test_one_key_may_take_all_places_while_no_other_wants_any() -> None:
    places = Places(10)
    take(places, ALICE, 10)
    assert refused(places, ALICE) == (429, "full")
    assert places.num_open == 10


def test_a_key_that_was_refused_gets_the_next_free_place_before_who_has_more() -> None:
    places = Places(10)
    take(places, ALICE, 10)
    assert refused(places, BOB) == (429, "full")
    places.take(ALICE.id, -1)
    assert refused(places, ALICE) == (429, "key_share")
    take(places, BOB, 1)


def test_while_two_keys_hold_places_each_may_hold_half() -> None:
    places = Places(10)
    take(places, BOB, 1)
    take(places, ALICE, 5)
    assert refused(places, ALICE) == (429, "key_share")
    take(places, BOB, 4)


def test_a_key_holds_no_more_sequences_than_it_is_allowed() -> None:
    few = ApiKey(id="few", sha256="c" * 64, max_sequences=2)
    places = Places(10)
    take(places, few, 2)
    assert refused(places, few) == (429, "key_sequences")
    places.take(few.id, -2)
    take(places, few, 1)


def test_what_can_never_fit_is_refused_for_good() -> None:
    assert refused(Places(10), ALICE, 11) == (400, "")
