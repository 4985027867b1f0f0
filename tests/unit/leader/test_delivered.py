from types import SimpleNamespace

import pytest

from rufus_serve.leader.delivered import take_delivered, with_delivered


def params(**extra_args):
    return SimpleNamespace(seed=7, extra_args=extra_args or None)


def test_what_goes_in_comes_out_and_leaves_nothing():
    sent = with_delivered(params(theirs=1), (5, 6))
    assert (take_delivered(sent), sent.extra_args, sent.seed) == ([5, 6], {"theirs": 1}, 7)
    assert take_delivered(sent) == []


def test_the_original_carries_nothing():
    original = params()
    with_delivered(original, [5])
    assert original.extra_args is None


@pytest.mark.parametrize("without", [None, params(), params(theirs=1)])
def test_without_tokens_nothing_is_taken(without):
    assert take_delivered(without) == []
