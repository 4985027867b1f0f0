import pytest
from group_history import GroupHistory, of

from rufus_serve.errors import HandshakeRefused, ModelError, StartupTimeout
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group_state import GroupState

Phase = ev.GroupPhase


def test_start_starts_one_follower_per_rank_and_the_stand_bys():
    history = GroupHistory(nodes=3, standby_nodes=1)
    starts = of(ev.StartFollower, history.actions)
    assert [start.node_rank for start in starts] == [0, 1, 2, ev.STANDBY]
    assert len({start.follower_id for start in starts}) == 4


def test_a_follower_that_joins_is_told_to_load():
    history = GroupHistory()
    name = history.id_of(1)
    assert history.join(name) == [ev.Welcomed(follower_id=name, node_rank=1)]
    assert history.phase_of(1) is ev.MemberPhase.LOADING


def test_the_group_forms_once_all_are_loaded_with_the_fewest_blocks_of_any():
    history = GroupHistory()
    for rank in (0, 1):
        history.join(history.id_of(rank))
    assert history.load(history.id_of(0), num_blocks=50) == []
    (form,) = history.load(history.id_of(1), num_blocks=40)
    assert isinstance(form, ev.Form)
    assert (form.epoch, form.num_blocks) == (1, 40)
    assert form.members == ((history.id_of(0), 0), (history.id_of(1), 1))


def test_ready_is_announced_when_the_last_member_is_ready():
    history = GroupHistory()
    history.happen(ev.EngineJoined(leader_id="first"))
    for rank in (0, 1):
        history.join(history.id_of(rank))
        history.load(history.id_of(rank))
    assert history.ready(history.id_of(0)) == []
    assert history.ready(history.id_of(1)) == [ev.AnnounceReady(epoch=1)]


def test_an_engine_that_joins_later_is_told_of_the_group():
    history = GroupHistory()
    history.advance()
    assert not of(ev.AnnounceReady, history.actions)
    assert history.happen(ev.EngineJoined(leader_id="a")) == [ev.AnnounceReady(epoch=1)]


def test_a_lost_follower_is_replaced_at_once_and_its_peer_keeps_its_process():
    history = GroupHistory().serve()
    survivor, dead = history.id_of(0), history.id_of(1)
    kill, lost, start = history.lose(1)
    assert kill == ev.KillFollower(follower_id=dead)
    assert isinstance(lost, ev.AnnounceLost)
    assert lost.epoch == 1
    assert isinstance(start, ev.StartFollower)
    assert start.node_rank == 1
    assert history.state.phase is Phase.RECOVERING
    history.advance()
    assert history.state.phase is Phase.READY
    assert history.id_of(0) == survivor
    assert history.actions[-1] == ev.AnnounceReady(epoch=2)


def test_a_suspicion_alone_forms_the_next_epoch_of_the_same_processes():
    history = GroupHistory(settle_s=0.3).serve()
    before = dict(history.state.members)
    assert history.happen(ev.EpochLost(epoch=1, reason="step 7 late")) == [
        ev.AnnounceLost(epoch=1, reason="step 7 late")
    ]
    (form,) = history.wait(0.4)
    assert isinstance(form, ev.Form)
    assert form.epoch == 2
    assert history.state.members.keys() == before.keys()


def test_a_suspicion_about_another_epoch_is_ignored():
    history = GroupHistory().serve()
    assert history.happen(ev.EpochLost(epoch=0, reason="late news")) == []
    assert history.state.phase is Phase.READY


def test_a_member_that_ignores_the_new_epoch_is_replaced_within_regroup_s():
    history = GroupHistory(regroup_s=2.0).serve()
    hung = history.id_of(0)
    history.happen(ev.EpochLost(epoch=1, reason="step 7 late"))
    history.wait(0.4)
    history.group(history.id_of(1))
    actions = history.wait(2.2)
    assert ev.KillFollower(follower_id=hung) in actions
    history.advance()
    assert history.state.phase is Phase.READY


def test_members_that_gave_an_epoch_up_though_all_live_form_another():
    history = GroupHistory().serve()
    history.lose(1)
    history.join(history.id_of(1))
    history.load(history.id_of(1))
    for rank in (0, 1):
        history.group(history.id_of(rank))
        history.happen(ev.GaveUp(follower_id=history.id_of(rank), epoch=2, reason="aborted"))
    (form,) = history.wait(0.5)
    assert isinstance(form, ev.Form)
    assert form.epoch == 3
    history.advance()
    assert history.state.phase is Phase.READY


def test_a_member_that_gave_up_because_its_peer_died_waits_for_the_replacement():
    history = GroupHistory().serve()
    history.lose(1)
    history.join(history.id_of(1))
    history.load(history.id_of(1))
    history.group(history.id_of(0))
    history.happen(ev.GaveUp(follower_id=history.id_of(0), epoch=2, reason="peer left"))
    history.lose(1)
    assert not of(ev.Form, history.wait(1.0))
    assert history.state.total_restarts == 2
    history.advance()
    assert history.state.phase is Phase.READY


@pytest.mark.parametrize(
    ("phase", "limit"),
    [("STARTING", {"join_s": 3.0}), ("LOADING", {"load_s": 3.0}), ("WARMING", {"warm_up_s": 3.0})],
)
def test_a_phase_past_its_deadline_fails_the_first_start(phase, limit):
    history = GroupHistory(**limit)
    for rank in (0, 1):
        history.launch(history.id_of(rank))
    if phase != "STARTING":
        for rank in (0, 1):
            history.join(history.id_of(rank))
    if phase == "WARMING":
        for rank in (0, 1):
            history.load(history.id_of(rank))
        for rank in (0, 1):
            history.group(history.id_of(rank))
    assert history.phase_of(0).name == phase
    assert not of(ev.FailGroup, history.wait(2.9))
    (failed,) = of(ev.FailGroup, history.wait(0.3))
    assert failed.kind is StartupTimeout
    assert "limit 3 s" in failed.reason


def test_a_member_may_wait_for_a_node_as_long_as_it_takes():
    history = GroupHistory(join_s=3.0).serve()
    history.lose(1)
    assert not history.wait(600.0)
    assert history.state.phase is Phase.RECOVERING
    history.advance()
    assert history.state.phase is Phase.READY


def test_what_a_warm_up_took_outlasts_the_epochs_without_one():
    history = GroupHistory()
    name = history.id_of(0)
    for act in (history.launch, history.join, history.load):
        act(name)
    other = history.id_of(1)
    for act in (history.launch, history.join, history.load):
        act(other)
    history.group(name)
    history.ready(name, warm_up_s=3.0)
    history.group(other)
    history.ready(other)
    history.lose(1)
    history.advance()
    assert history.state.phase is Phase.READY
    assert history.state.by_rank()[0].warm_up_s == 3.0


def test_a_silent_member_is_lost():
    history = GroupHistory(heartbeat_lost_s=5.0).serve()
    history.now += 4.9
    for stale_steps in (2, 0):
        history.happen(ev.Heard(follower_id=history.id_of(0), stale_steps=stale_steps))
    assert history.state.by_rank()[0].stale_steps == 2
    silent = history.id_of(1)
    assert of(ev.KillFollower, history.pass_silently(0.2)) == [ev.KillFollower(follower_id=silent)]


def test_a_process_that_has_not_joined_yet_is_not_expected_to_send_heartbeats():
    history = GroupHistory(heartbeat_lost_s=5.0, join_s=60.0)
    assert history.pass_silently(30.0) == []


def test_another_engine_gets_an_epoch_of_its_own():
    history = GroupHistory().serve()
    before = dict(history.state.members)
    lost, form = history.happen(ev.EngineJoined(leader_id="second"))
    assert isinstance(lost, ev.AnnounceLost)
    assert isinstance(form, ev.Form)
    history.advance()
    assert history.actions[-1] == ev.AnnounceReady(epoch=2)
    assert history.state.members.keys() == before.keys()
    assert history.state.total_restarts == 0


def test_the_same_engine_connecting_again_is_told_of_the_same_epoch():
    history = GroupHistory().serve()
    assert history.happen(ev.EngineJoined(leader_id="first")) == [ev.AnnounceReady(epoch=1)]


def test_survivors_that_cannot_rejoin_are_replaced_at_the_loss_side_by_side():
    history = GroupHistory(nodes=3, backoff_s=5.0)
    history.can_rejoin = False
    history.serve()
    before = {history.id_of(rank) for rank in range(3)}
    actions = history.lose(1)
    assert {kill.follower_id for kill in of(ev.KillFollower, actions)} == before
    assert sorted(start.node_rank for start in of(ev.StartFollower, actions)) == [0, 1, 2]
    assert history.state.total_restarts == 1
    assert dict(history.state.restarts_of_rank) == {0: 1, 1: 1, 2: 1}
    history.advance()
    assert history.state.phase is Phase.READY
    assert history.state.epoch == 2


def test_a_group_that_cannot_rejoin_is_restarted_as_a_whole_on_request():
    history = GroupHistory()
    history.can_rejoin = False
    history.serve()
    actions = history.happen(ev.RestartAsked(node_ranks=(1,)))
    assert sorted(start.node_rank for start in of(ev.StartFollower, actions)) == [0, 1]


def test_members_that_only_load_are_kept_when_one_of_a_group_is_lost_again():
    history = GroupHistory(backoff_s=0.1)
    history.can_rejoin = False
    history.serve()
    history.lose(1)
    loading = history.id_of(0)
    history.join(loading)
    history.lose(1)
    history.wait(1.0)
    assert history.id_of(0) == loading


def test_replacing_members_that_cannot_rejoin_survives_one_that_is_silent_as_well():
    history = GroupHistory(nodes=3, heartbeat_lost_s=5.0)
    history.can_rejoin = False
    history.serve()
    history.now += 6.0
    history.happen(ev.EngineJoined(leader_id="second"))
    history.wait(2.0)
    history.advance()
    assert history.state.phase is Phase.READY


def test_a_restart_of_an_unknown_rank_is_ignored():
    history = GroupHistory().serve()
    assert history.happen(ev.RestartAsked(node_ranks=(7,))) == []


def test_a_fatal_failure_ends_the_group_with_its_own_exit_code():
    history = GroupHistory()
    failed = ev.Failed(follower_id=history.id_of(0), reason="no such file", kind=ModelError)
    (action,) = history.happen(failed)
    assert isinstance(action, ev.FailGroup)
    assert action.kind is ModelError
    assert "no such file" in action.reason


def test_an_error_that_may_pass_is_fatal_at_the_first_start_alone():
    for history, is_fatal in ((GroupHistory(), True), (GroupHistory().serve(), False)):
        failed = ev.Failed(follower_id=history.id_of(0), reason="key", kind=HandshakeRefused)
        assert bool(of(ev.FailGroup, history.happen(failed))) == is_fatal


def test_news_of_a_replaced_process_is_ignored():
    history = GroupHistory().serve()
    old = history.id_of(1)
    history.lose(1)
    assert history.happen(ev.Lost(follower_id=old, reason="exit seen")) == []
    assert history.state.total_restarts == 1


def test_readiness_of_a_past_epoch_is_ignored():
    history = GroupHistory().serve()
    history.happen(ev.EpochLost(epoch=1, reason="late"))
    history.wait(0.4)
    for rank in (0, 1):
        assert history.ready(history.id_of(rank), epoch=1) == []
    assert history.state.phase is Phase.RECOVERING


@pytest.mark.parametrize("end", ["failed", "stopped"])
def test_nothing_happens_after_the_end(end):
    history = GroupHistory(max_restarts=0).serve()
    if end == "stopped":
        history.happen(ev.Stopping())
    else:
        history.lose(1)
    for event in (ev.Tick(), ev.EngineJoined(leader_id="x"), ev.RestartAsked(node_ranks=(0,))):
        history.now += 100.0
        assert history.happen(event) == []


def test_health_lasts_through_recovery_until_its_deadline():
    history = GroupHistory(deadline_s=60.0).serve()
    history.lose(1)
    assert history.state.healthy(history.now + 59.0)
    assert not history.state.healthy(history.now + 61.0)


def test_followers_found_waiting_keep_their_ranks_and_only_the_others_are_started():
    state = GroupState(ev.GroupSettings(nodes=2), now=0.0)
    found = ev.Joined(follower_id="1.9", host="h", address="127.0.0.1", pid=4)
    actions = state.start(((found, 1),), 0.0)
    assert ev.Welcomed(follower_id="1.9", node_rank=1) in actions
    assert [start.node_rank for start in of(ev.StartFollower, actions)] == [0]


def test_a_member_that_loads_may_say_nothing_as_long_as_its_connection_stands():
    history = GroupHistory(heartbeat_lost_s=4.0, load_s=60.0)
    for rank in (0, 1):
        history.join(history.id_of(rank))
    for _ in range(50):
        history.now += 1.0
        for rank in (0, 1):
            history.happen(ev.Connected(follower_id=history.id_of(rank)))
        assert not of(ev.KillFollower, history.happen(ev.Tick()))
    cut_off = history.id_of(1)
    history.now += 2.5
    history.happen(ev.Connected(follower_id=history.id_of(0)))
    assert of(ev.KillFollower, history.happen(ev.Tick())) == [ev.KillFollower(follower_id=cut_off)]


def test_a_member_that_is_ready_must_speak_for_itself():
    history = GroupHistory(heartbeat_lost_s=4.0).serve()
    history.now += 4.5
    for rank in (0, 1):
        history.happen(ev.Connected(follower_id=history.id_of(rank)))
    assert len(of(ev.KillFollower, history.happen(ev.Tick()))) == 2


def test_an_engine_that_can_step_no_group_fails_it():
    history = GroupHistory()
    history.serve()
    (failed,) = history.happen(ev.EngineFailed(reason="another shape", kind=ModelError))
    assert failed == ev.FailGroup(kind=ModelError, reason="another shape")


def test_a_group_is_restarted_as_a_whole_on_request():
    history = GroupHistory()
    history.serve()
    before = {history.id_of(0), history.id_of(1)}
    actions = history.happen(ev.RestartAsked(node_ranks=(0, 1)))
    assert {a.follower_id for a in actions if isinstance(a, ev.KillFollower)} == before
    assert [a.node_rank for a in actions if isinstance(a, ev.StartFollower)] == [0, 1]
    assert history.state.total_restarts == 0
