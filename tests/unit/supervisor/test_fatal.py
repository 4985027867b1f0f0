import pytest

from rufus_serve import errors
from rufus_serve.supervisor.fatal import is_fatal, kind_of_exit


@pytest.mark.parametrize(
    ("kind", "at_first", "later"),
    [
        (errors.ModelError, True, True),
        (errors.ConfigError, True, True),
        (errors.ArtifactError, True, True),
        (errors.ArtifactsUnreachable, True, False),
        (errors.HandshakeRefused, True, False),
        (errors.EndpointError, True, False),
        (errors.StartupTimeout, True, False),
        (errors.RufusError, True, False),
        (errors.FollowerError, False, False),
        (errors.LeaderLost, False, False),
        (errors.CollectiveAborted, False, False),
    ],
)
def test_an_error_is_fatal_if_another_try_would_meet_it(kind, at_first, later):
    assert is_fatal(kind, first_start=True) == at_first
    assert is_fatal(kind, first_start=False) == later


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15])
def test_a_code_means_the_same_reported_and_seen_as_the_end_of_a_process(code):
    assert kind_of_exit(code) is errors.class_of(code)


@pytest.mark.parametrize("code", [-9, -11, 0])
def test_a_follower_that_was_killed_is_replaced_even_at_the_first_start(code):
    assert not is_fatal(kind_of_exit(code), first_start=True)


def test_an_interpreter_that_cannot_start_ends_the_first_start():
    assert is_fatal(kind_of_exit(127), first_start=True)
