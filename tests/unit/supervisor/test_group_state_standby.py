from group_history import GroupHistory, of

from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group_state import GroupState

Phase = ev.GroupPhase


def test_a_stand_by_takes_a_lost_rank_at_once_and_is_itself_replaced():
    history = GroupHistory(standby_nodes=1).serve()
    (standby,) = [m for m in history.state.members.values() if m.node_rank == ev.STANDBY]
    actions = history.lose(1)
    assert ev.Welcomed(follower_id=standby.follower_id, node_rank=1) in actions
    assert [start.node_rank for start in of(ev.StartFollower, actions)] == [ev.STANDBY]
    history.advance()
    assert history.state.phase is Phase.READY
    assert history.id_of(1) == standby.follower_id


def test_a_lost_stand_by_does_not_end_the_epoch():
    history = GroupHistory(standby_nodes=1).serve()
    (standby,) = [m for m in history.state.members.values() if m.node_rank == ev.STANDBY]
    actions = history.happen(ev.Lost(follower_id=standby.follower_id, reason="gone"))
    assert not of(ev.AnnounceLost, actions)
    assert history.state.phase is Phase.READY
    assert [start.node_rank for start in of(ev.StartFollower, actions)] == [ev.STANDBY]


def test_a_whole_group_takes_its_stand_bys_first():
    history = GroupHistory(standby_nodes=1)
    history.can_rejoin = False
    history.serve()
    actions = history.lose(1)
    assert [taken.node_rank for taken in of(ev.Welcomed, actions)] == [1]
    started = [start.node_rank for start in of(ev.StartFollower, actions)]
    assert sorted(started) == [ev.STANDBY, 0]


def test_several_groups_tell_their_followers_apart():
    state = GroupState(ev.GroupSettings(nodes=2, name="1"), now=0.0)
    started = state.start((), 0.0)
    assert [action.follower_id for action in started] == ["1-0.1", "1-1.2"]
    assert [member.title for member in state.by_rank().values()] == [
        "follower 1/0", "follower 1/1",
    ]  # fmt: skip


def test_a_stand_by_of_one_group_takes_a_lost_nodes_place_in_another():
    lender = GroupHistory(nodes=1, standby_nodes=1)
    lender.serve()
    (standby,) = (m for m in lender.state.members.values() if m.node_rank == ev.STANDBY)
    lender.join(standby.follower_id)
    borrower = GroupHistory(nodes=1)
    borrower.state._borrow = lender.state.lend_standby
    borrower.serve()
    actions = borrower.happen(ev.Lost(follower_id=borrower.id_of(0), reason="killed"))
    assert ev.Welcomed(follower_id=standby.follower_id, node_rank=0) in actions
    assert not [each for each in actions if isinstance(each, ev.StartFollower)]
    assert standby.follower_id not in lender.state.members
    (started,) = (each for each in lender.wait(0.1) if isinstance(each, ev.StartFollower))
    assert started.node_rank == ev.STANDBY
    assert borrower.state._borrow(borrower.now) is None
