"""Every kind of process that Ray has, killed in every state of the group."""

from collections.abc import Iterator

import pytest

from tests.e2e.groups import FLAGS, Group
from tests.e2e.losses import serving, status_of, strike, wait_ready
from tests.e2e.ray_losses import VICTIMS, Blow, kill

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with serving("--nodes=2", *FLAGS) as server:
        yield Group(server)
        server.stop()
        server.assert_nothing_remains()


@pytest.mark.parametrize("victim", VICTIMS)
def test_an_idle_group_does_not_notice(group: Group, victim: str) -> None:
    blow = Blow(group, victim)
    blow.wait_back()
    blow.assert_unnoticed(group.start().finish())


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_decoding_group_does_not_notice(group: Group, victim: str) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    blow = Blow(group, victim)
    blow.assert_unnoticed(streams.finish())
    blow.wait_back()


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_long_prompt_is_read_on(group: Group, victim: str) -> None:
    streams = group.start_long()
    blow = Blow(group, victim)
    (answer,) = streams.finish()
    answer.assert_same(group.long_expected[0])
    blow.wait_back()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_group_that_lost_a_follower_recovers(group: Group, victim: str, rank: int) -> None:
    streams = group.start()
    streams.wait_until_each_began()
    blow = strike(group.server, rank)
    kill(group.server, victim)
    group.assert_undisturbed(streams.finish())
    blow.wait_recovered()
    wait_ready(group.server)
    assert status_of(group.server).restarts
