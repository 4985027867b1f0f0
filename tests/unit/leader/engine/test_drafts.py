import numpy as np
import pytest

from rufus_serve.leader.engine.drafts import Chance, Drafter, Text

COPY = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], np.int32)
NOTHING_TWICE = np.arange(40, dtype=np.int32)


def propose(drafter: Drafter, *, num_rows: int = 1, room: int = 7) -> list[int]:
    return drafter.propose({"a": Text(COPY, room)}, num_rows=num_rows).get("a", [])


def test_a_chance_follows_what_came_true():
    chance = Chance()
    assert chance.value == 0.5
    chance.observe(4, 4)
    assert chance.value > 0.8
    for _ in range(50):
        chance.observe(4, 0)
    assert chance.value < 0.07


def test_drafts_behind_the_first_wrong_one_say_nothing():
    long, short = Chance(), Chance()
    long.observe(8, 1)
    short.observe(2, 1)
    assert long.value == short.value


def test_a_request_whose_drafts_come_true_gets_all_that_there_is_room_for():
    drafter = Drafter(shortest=2, longest=4)
    first = propose(drafter)
    assert 0 < len(first) < 7
    drafter.observe("a", len(first), len(first))
    assert propose(drafter) == [3, 4, 5, 6, 7, 8, 9]
    assert propose(drafter, room=2) == [3, 4]
    assert propose(drafter, room=0) == []


@pytest.mark.parametrize("num_rows", [1, 8])
def test_a_request_whose_drafts_do_not_come_true_is_tried_again_now_and_then(num_rows: int) -> None:
    drafter = Drafter(shortest=2, longest=4)
    tried = 0
    for _ in range(400):
        drafts = propose(drafter, num_rows=num_rows)
        if drafts:
            tried += len(drafts)
            drafter.observe("a", len(drafts), 0)
    assert 2 < tried < 200


def test_the_more_requests_share_a_step_the_likelier_a_draft_must_be():
    counts = [len(propose(Drafter(shortest=2, longest=4), num_rows=rows)) for rows in (1, 8, 64)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_drafts_that_cost_nothing_are_all_tried_whatever_became_of_others():
    drafter = Drafter(shortest=2, longest=4, are_free=True)
    for _ in range(20):
        assert propose(drafter, num_rows=64) == [3, 4, 5, 6, 7, 8, 9]
        drafter.observe("a", 7, 0)


def test_likely_drafts_go_before_unlikely_ones():
    drafter = Drafter(shortest=2, longest=4)
    texts = {"a": Text(COPY, 7), "b": Text(COPY, 7), "c": Text(NOTHING_TWICE, 7)}
    drafter.propose(texts, num_rows=3)
    for _ in range(5):
        drafter.observe("a", 7, 7)
        drafter.observe("b", 1, 0)
    drafts = drafter.propose(texts, num_rows=3)
    assert len(drafts["a"]) == 7
    assert len(drafts.get("b", [])) <= 1
    assert "c" not in drafts


def test_a_request_that_is_over_is_forgotten():
    drafter = Drafter(shortest=2, longest=4)
    for _ in range(50):
        propose(drafter)
        drafter.observe("a", 1, 0)
    assert propose(drafter, num_rows=8) == []
    drafter.forget(["a", "unknown"])
    assert propose(drafter, num_rows=8) != []
