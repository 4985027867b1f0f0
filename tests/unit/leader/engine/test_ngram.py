import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.leader.engine.ngram import lookup


def found(tokens, count=3, shortest=2, longest=4):
    return lookup(np.array(tokens, np.int32), count, shortest=shortest, longest=longest)


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2], [3, 4, 5]),
        ([1, 2, 3], []),
        ([7, 2, 3, 4, 5, 9, 1, 2], []),
        ([5], []),
        ([1, 2, 8, 8, 8, 1, 2, 7, 7, 7, 1, 2], [7, 7, 7]),
        ([9, 1, 2, 8, 8, 8, 1, 2, 7, 7, 7, 9, 1, 2], [8, 8, 8]),
        ([4, 5, 4, 5, 4, 5], [4, 5]),
        ([6, 6, 6], [6]),
    ],
    ids=["copy", "new", "one token", "lone", "nearest", "longest", "period", "same"],
)
def test_what_followed_the_last_tokens_before_is_proposed(tokens, drafts):
    assert found(tokens) == drafts


def test_no_more_tokens_are_compared_than_configured():
    text = [1, 2, 3, 4, 8, 8, 5, 2, 3, 4, 7, 7, 1, 2, 3, 4]
    assert found(text, count=2, longest=4) == [8, 8]
    assert found(text, count=2, longest=3) == [7, 7]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_drafts_stand_in_the_text_behind_the_longest_repeated_end(tokens, count, shortest, more):
    longest = shortest + more
    drafts = found(tokens, count, shortest, longest)
    starts = range(len(tokens))

    def is_repeated(length):
        end = tokens[len(tokens) - length :]
        return length <= len(tokens) and any(
            tokens[at : at + length] == end for at in starts[: len(tokens) - length]
        )

    lengths = [length for length in range(shortest, longest + 1) if is_repeated(length)]
    if not lengths:
        assert drafts == []
        return
    text = tokens[len(tokens) - lengths[-1] :] + drafts
    assert 1 <= len(drafts) <= count
    assert any(tokens[at : at + len(text)] == text for at in starts)
