"""Any history of events keeps the group's promises; hypothesis looks for one that does not."""

from group_history import runtime_info
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rufus_serve.protocol.messages import StepEndpoint
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group_state import GroupState

END = (ev.GroupPhase.FAILED, ev.GroupPhase.STOPPED)
Member = ev.MemberPhase


class GroupHistories(RuleBasedStateMachine):
    """Judges by actions alone what followers and leader would live through."""

    @initialize(
        nodes=st.integers(1, 3),
        standby_nodes=st.integers(0, 1),
        max_restarts=st.sampled_from([0, 1, 3, 50, 50, 50]),
        can_rejoin=st.booleans(),
    )
    def begin(self, nodes, standby_nodes, max_restarts, can_rejoin):
        self.settings = ev.GroupSettings(
            nodes=nodes,
            standby_nodes=standby_nodes,
            max_restarts=max_restarts,
            window_s=60.0,
            join_s=20.0,
            load_s=20.0,
            warm_up_s=20.0,
            max_backoff_s=2.0,
        )
        self.now = 0.0
        self.can_rejoin = can_rejoin
        self.processes = set()
        self.form = None
        self.formed_before = set()
        self.ready_in_epoch, self.given_up = set(), set()
        self.leader_epoch = None
        self.newest_lost = 0
        self.has_engine = False
        self.failures = 0
        self.state = GroupState(self.settings, now=0.0)
        self.take(self.state.start((), 0.0))

    # ---- what the actions mean to the world ----

    def take(self, actions):
        for action in actions:
            getattr(self, f"on_{type(action).__name__}")(action)

    def on_StartFollower(self, action):
        assert action.follower_id not in self.processes
        self.processes.add(action.follower_id)

    def on_KillFollower(self, action):
        self.processes.remove(action.follower_id)

    def on_Welcomed(self, action):
        assert action.follower_id in self.processes
        assert action.node_rank in range(self.settings.nodes)

    def on_Form(self, action):
        assert self.form is None or action.epoch > self.form.epoch
        names = [name for name, _ in action.members]
        assert [rank for _, rank in action.members] == list(range(self.settings.nodes))
        assert self.processes >= set(names)
        assert len(action.addresses) == self.settings.nodes
        if not self.can_rejoin:
            assert not self.formed_before & set(names)
        self.formed_before |= set(names)
        assert self.leader_epoch is None, "the leader would still step the old epoch"
        self.form, self.ready_in_epoch, self.given_up = action, set(), set()

    def on_AnnounceReady(self, action):
        assert self.has_engine
        assert self.form is not None
        assert action.epoch == self.form.epoch
        assert action.epoch > self.newest_lost
        names = {name for name, _ in self.form.members}
        assert names == self.ready_in_epoch
        assert names <= self.processes
        self.leader_epoch = action.epoch

    def on_AnnounceLost(self, action):
        assert self.leader_epoch in (action.epoch, None)
        self.leader_epoch, self.newest_lost = None, action.epoch

    def on_FailGroup(self, action):
        self.failures += 1
        assert action.kind.exit_code
        assert action.reason

    def happen(self, event):
        before, ended = self.state.epoch, self.state.phase in END
        actions = self.state.handle(event, self.now)
        assert self.state.epoch >= before
        if ended:
            assert actions == []
        self.take(actions)

    def pick(self, data, *phases):
        chosen = [m for m in self.state.members.values() if not phases or m.phase in phases]
        return data.draw(st.sampled_from(chosen)) if chosen else None

    # ---- what may happen ----

    @rule(data=st.data())
    def join(self, data):
        if member := self.pick(data):
            self.happen(ev.Joined(follower_id=member.follower_id, address="127.0.0.1", host="h"))

    @rule(data=st.data(), num_blocks=st.integers(8, 64))
    def load(self, data, num_blocks):
        if member := self.pick(data, Member.LOADING, Member.READY):
            info = runtime_info(num_blocks=num_blocks, can_rejoin=self.can_rejoin)
            self.happen(ev.Loaded(follower_id=member.follower_id, info=info))

    @rule(steps_done=st.integers(0, 100))
    def step(self, steps_done):
        self.happen(ev.Stepped(steps_done=steps_done))

    @rule(data=st.data())
    def group(self, data):
        if member := self.pick(data, Member.GROUPING):
            self.happen(ev.Grouping(follower_id=member.follower_id, epoch=self.state.epoch))

    @rule(data=st.data(), late=st.integers(0, 1))
    def ready(self, data, late):
        member = self.pick(data, Member.WARMING)
        if member and member.follower_id not in self.given_up:
            if not late:
                self.ready_in_epoch.add(member.follower_id)
            self.happen(self.readiness(member, self.state.epoch - late))

    @rule(data=st.data())
    def give_up(self, data):
        if member := self.pick(data, Member.GROUPING, Member.WARMING):
            self.given_up.add(member.follower_id)
            self.happen(ev.GaveUp(follower_id=member.follower_id, epoch=self.state.epoch))

    @rule(data=st.data(), reported=st.booleans())
    def lose(self, data, reported):
        if member := self.pick(data):
            name, ended = member.follower_id, self.state.phase in END
            event = ev.Failed if reported else ev.Lost
            self.happen(event(follower_id=name, reason="gone"))
            assert ended or name not in self.processes
            self.happen(ev.Lost(follower_id=name, reason="told twice"))

    @rule(behind=st.integers(0, 1))
    def suspect(self, behind):
        self.happen(ev.EpochLost(epoch=self.state.epoch - behind, reason="step failed"))

    @rule(leader=st.sampled_from(["a", "b"]))
    def engine(self, leader):
        self.has_engine = True
        self.happen(ev.EngineJoined(leader_id=leader))

    @rule(rank=st.integers(0, 3))
    def restart(self, rank):
        self.happen(ev.RestartAsked(node_ranks=(rank,)))

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0, 25.0]), silent=st.integers(0, 2))
    def wait(self, seconds, silent):
        self.now += seconds
        for name in list(self.state.members)[silent // 2 :]:
            self.happen(ev.Heard(follower_id=name))
        self.happen(ev.Tick())

    @rule(rounds=st.integers(1, 3))
    def go_on(self, rounds):
        for _ in range(rounds):
            self.live_on()

    @rule()
    def left_in_peace_the_group_serves_again_unless_it_has_ended(self):
        for _ in range(40):
            if self.state.phase in (ev.GroupPhase.READY, *END):
                return
            self.live_on()
        raise AssertionError(f"still {self.state.phase} after 4 s of peace")

    @rule(chance=st.integers(0, 30))
    @precondition(lambda self: self.state.epoch > 1)
    def stop(self, chance):
        if chance == 30:
            self.happen(ev.Stopping())

    # ---- what must hold ----

    @invariant()
    def each_rank_has_one_member_or_one_on_its_way(self):
        if self.state.phase in END:
            return
        ranks = [member.node_rank for member in self.state.members.values()]
        ranks += [rank for _, rank in self.state._replacements.pending]
        expected = list(range(self.settings.nodes)) + [ev.STANDBY] * self.settings.standby_nodes
        assert sorted(ranks) == sorted(expected)

    @invariant()
    def members_are_the_processes_that_run(self):
        if self.state.phase not in END:
            assert set(self.state.members) == self.processes

    @invariant()
    def the_leader_steps_only_while_the_group_is_ready(self):
        if self.state.phase is ev.GroupPhase.READY:
            assert self.leader_epoch == (self.state.epoch if self.has_engine else None)
        elif self.state.phase not in END:
            assert self.leader_epoch is None

    @invariant()
    def the_budget_and_the_backoff_are_respected(self):
        assert len(self.state._budget._spent) <= self.settings.max_restarts
        assert self.failures <= 1
        for at, _ in self.state._replacements.pending:
            assert at <= self.now + self.settings.max_backoff_s

    def live_on(self):
        for member in list(self.state.members.values()):
            self.serve_member(member)
        self.now += 0.1
        for name in list(self.state.members):
            self.happen(ev.Heard(follower_id=name))
        self.happen(ev.Tick())

    def serve_member(self, member):
        name = member.follower_id
        if name not in self.state.members:
            return
        match member.phase:
            case Member.PLACING:
                self.happen(ev.Launched(follower_id=name))
            case Member.STARTING:
                self.happen(ev.Joined(follower_id=name, address="127.0.0.1", host="h"))
            case Member.LOADING:
                info = runtime_info(can_rejoin=self.can_rejoin)
                self.happen(ev.Loaded(follower_id=name, info=info))
            case Member.GROUPING:
                self.happen(ev.Grouping(follower_id=name, epoch=self.state.epoch))
            case Member.WARMING if name not in self.given_up:
                self.ready_in_epoch.add(name)
                self.happen(self.readiness(member, self.state.epoch))

    @staticmethod
    def readiness(member, epoch):
        endpoint = StepEndpoint(node_rank=member.node_rank, host="h", endpoint="tcp://h:1")
        return ev.Ready(follower_id=member.follower_id, epoch=epoch, endpoint=endpoint)


TestGroupHistories = GroupHistories.TestCase
TestGroupHistories.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
