import pytest

from rufus_serve.supervisor.leader_keeper import _end_of


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "it was ended by SIGKILL; it may have run out of memory"),
        (-11, "it was ended by SIGSEGV"),
        (3, "it ended with code 3 without a word"),
    ],
)
def test_a_leader_that_left_no_word_is_told_of_by_how_it_ended(code: int, said: str) -> None:
    assert _end_of(code) == said
