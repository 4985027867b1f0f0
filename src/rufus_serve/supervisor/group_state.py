"""`GroupState`: what to do about the group, as a pure state machine.

Events go in, actions come out; no clock, socket or process is touched, so that every
history can be replayed in a test. The supervisor performs the actions in order.
`group_events` draws the phases.

One *epoch* is one set of collectives among one set of processes. It ends when a member is
lost, when the leader gives up on a step, or when another leader takes over; survivors then
keep their weights and form the next epoch, with void KV caches.
"""

from collections import Counter
from collections.abc import Callable

from rufus_serve.errors import RestartBudgetSpent, RufusError, StartupTimeout
from rufus_serve.protocol.messages import RuntimeInfo
from rufus_serve.supervisor.fatal import is_fatal
from rufus_serve.supervisor.group_events import (
    STANDBY,
    Action,
    AnnounceLost,
    AnnounceReady,
    EngineFailed,
    EngineJoined,
    EpochLost,
    Event,
    Failed,
    FailGroup,
    Form,
    GaveUp,
    Grouping,
    GroupPhase,
    GroupSettings,
    Joined,
    KillFollower,
    Launched,
    Loaded,
    Lost,
    Member,
    MemberEvent,
    MemberPhase,
    Ready,
    RestartAsked,
    StartFollower,
    Stepped,
    Stopping,
    Welcomed,
)
from rufus_serve.supervisor.recovery_time import RecoveryTime
from rufus_serve.supervisor.replacements import Replacements
from rufus_serve.supervisor.restart_budget import RestartBudget

_FORMING = (MemberPhase.GROUPING, MemberPhase.WARMING)


class GroupState:
    """The group's members, epoch and phase; `handle` is its only way in."""

    def __init__(
        self,
        settings: GroupSettings,
        *,
        now: float,
        epoch: int = 0,
        serial: int = 0,
        borrow: Callable[[float], Member | None] = lambda _: None,
    ) -> None:
        """Go on after `epoch` and follower number `serial`; `borrow` brings others' stand-bys."""
        self.settings = settings
        self._borrow = borrow
        self.phase = GroupPhase.STARTING
        self.phase_since = now
        self.epoch = epoch
        self.members: dict[str, Member] = {}
        self._budget = RestartBudget(max_restarts=settings.max_restarts, window_s=settings.window_s)
        self.restarts_of_rank: Counter[int] = Counter()
        self.failure = ""
        self.recovery_time = RecoveryTime(settings)
        self.serial = serial
        self._replacements = Replacements(
            backoff_s=settings.backoff_s, max_backoff_s=settings.max_backoff_s
        )
        self._warming_limit_s = settings.warm_up_s
        self._regroup: tuple[float, str] | None = None
        """When to form an epoch of the same members, and why, unless one turns out lost."""
        self._engine = ""
        self._engine_epoch = 0
        self._actions: list[Action] = []

    # ---- reading ----

    def by_rank(self) -> dict[int, Member]:
        """Members that hold a rank, by rank."""
        ranked = [member for member in self.members.values() if member.node_rank != STANDBY]
        return {member.node_rank: member for member in sorted(ranked, key=lambda m: m.node_rank)}

    def healthy(self, now: float) -> bool:
        """Whether the group serves, or may still come to serve within its deadline."""
        if self.phase is GroupPhase.READY:
            return True
        if self.phase is GroupPhase.RECOVERING:
            return now - self.phase_since <= self.recovery_time.deadline_s
        return self.phase is GroupPhase.STARTING

    @property
    def total_restarts(self) -> int:
        """Restarts after a loss, since the supervisor was started."""
        return self._budget.total

    @property
    def info(self) -> RuntimeInfo | None:
        """What the group can do."""
        infos = [member.info for member in self.by_rank().values() if member.info is not None]
        return infos[0].together_with(infos[1:]) if infos else None

    # ---- events ----

    def start(self, adopted: tuple[tuple[Joined, int], ...], now: float) -> list[Action]:
        """Begin with followers found waiting, each with its rank; start the others."""
        self._actions = []
        for event, rank in adopted:
            self._add(event.follower_id, rank, now)
            self._on_joined(event, now)
        for rank in sorted(set(range(self.settings.nodes)) - set(self.by_rank())):
            self._start(rank, now)
        for _ in range(self.settings.standby_nodes):
            self._start(STANDBY, now)
        return self._actions

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in `event`; what must be done about it, in order."""
        self._actions = []
        if self.phase in (GroupPhase.FAILED, GroupPhase.STOPPED):
            return self._actions
        if isinstance(event, MemberEvent):
            self._on_member_event(event, now)
        elif isinstance(event, EpochLost):
            self._on_epoch_lost(event, now)
        elif isinstance(event, EngineJoined):
            self._on_engine(event, now)
        elif isinstance(event, EngineFailed):
            self._fail(event.kind, event.reason, now)
        elif isinstance(event, RestartAsked):
            self._on_restart_asked(event.node_ranks, now)
        elif isinstance(event, Stepped):
            self._budget.took_steps(event.steps_done)
        elif isinstance(event, Stopping):
            self._enter(GroupPhase.STOPPED, now)
        else:
            self._on_tick(now)
        return self._actions

    def _on_member_event(self, event: MemberEvent, now: float) -> None:
        member = self.members.get(event.follower_id)
        if member is None:
            return
        member.note(event, now)
        if isinstance(event, Joined):
            self._on_joined(event, now)
        elif isinstance(event, Loaded):
            self._on_loaded(member, event, now)
        elif isinstance(event, Launched | Grouping):
            self._on_begun(member, event, now)
        elif isinstance(event, GaveUp):
            self._on_gave_up(member, event, now)
        elif isinstance(event, Ready):
            self._on_ready(member, event, now)
        elif isinstance(event, Lost):
            self._on_lost(member, event.reason, now)
        elif isinstance(event, Failed):
            self._on_failed(member, event, now)

    def _on_joined(self, event: Joined, now: float) -> None:
        member = self.members[event.follower_id]
        member.host, member.address, member.pid = event.host, event.address, event.pid
        standby = member.node_rank == STANDBY
        if member.phase in (MemberPhase.PLACING, MemberPhase.STARTING, MemberPhase.IDLE):
            self._move(member, MemberPhase.IDLE if standby else MemberPhase.LOADING, now)
        if not standby:
            self._do(Welcomed(follower_id=member.follower_id, node_rank=member.node_rank))

    def _on_begun(self, member: Member, event: Launched | Grouping, now: float) -> None:
        if isinstance(event, Launched):
            if member.phase is MemberPhase.PLACING:
                self._move(member, MemberPhase.STARTING, now)
        elif event.epoch == self.epoch and member.phase is MemberPhase.GROUPING:
            self._move(member, MemberPhase.WARMING, now)

    def _on_loaded(self, member: Member, event: Loaded, now: float) -> None:
        member.info, member.load_count = event.info, event.load_count
        if member.phase is MemberPhase.LOADING:
            self._move(member, MemberPhase.LOADED, now)
            self._form_if_complete(now)

    def _on_ready(self, member: Member, event: Ready, now: float) -> None:
        if event.epoch != self.epoch or member.phase is MemberPhase.READY:
            return
        member.endpoint = event.endpoint
        member.warm_up_s = event.warm_up_s or member.warm_up_s
        self._move(member, MemberPhase.READY, now)
        ranked = self.by_rank()
        if self._complete() and all(m.phase is MemberPhase.READY for m in ranked.values()):
            self._replacements.forgive()
            self.recovery_time.note(self.phase, now - self.phase_since)
            self._enter(GroupPhase.READY, now)
            self._announce()

    def _on_failed(self, member: Member, event: Failed, now: float) -> None:
        if self._is_fatal(event.kind):
            self._fail(event.kind, f"{member.name}: {event.reason}", now)
        else:
            self._on_lost(member, event.reason, now)

    def _on_epoch_lost(self, event: EpochLost, now: float) -> None:
        if event.epoch != self.epoch or self.phase is not GroupPhase.READY:
            return
        self._end_epoch(event.reason, now)
        self._regroup = (now + self.settings.settle_s, event.reason)

    def _on_gave_up(self, member: Member, event: GaveUp, now: float) -> None:
        if event.epoch != self.epoch or member.phase not in _FORMING:
            return
        self._move(member, MemberPhase.LOADED, now)
        if self._regroup is None:
            reason = f"{member.name} could not form epoch {event.epoch}: {event.reason}"
            self._regroup = (now + self.settings.settle_s, reason)

    def _on_engine(self, event: EngineJoined, now: float) -> None:
        took_over = bool(self._engine) and self._engine != event.leader_id
        self._engine = event.leader_id
        if self.phase is not GroupPhase.READY:
            return
        if took_over and self._engine_epoch == self.epoch:
            self._end_epoch("another leader took over", now)
            self._form_if_complete(now)
        else:
            self._announce()

    def _on_restart_asked(self, ranks: tuple[int, ...], now: float) -> None:
        asked = [member for rank, member in self.by_rank().items() if rank in ranks]
        if not asked:
            return
        for member in asked:
            self._remove(member)
        self._regroup = None
        names = ", ".join(member.name for member in asked)
        self._end_epoch(f"restarted on request: {names}", now)
        self._replace([*(member.node_rank for member in asked), *self._retire()], now)

    def _on_lost(self, member: Member, reason: str, now: float) -> None:
        self._remove(member)
        reason, ranks = f"{member.name}: {reason}", [member.node_rank]
        if member.node_rank != STANDBY:
            self._regroup = None
            self._end_epoch(reason, now)
            ranks += self._retire()
        if self._spend(reason, now):
            self.restarts_of_rank.update(ranks)
            self._replace(ranks, now)

    def _on_tick(self, now: float) -> None:
        for member in list(self.members.values()):
            if member.follower_id in self.members and self.phase is not GroupPhase.FAILED:
                self._check_deadline(member, now)
        if self.phase is not GroupPhase.FAILED:
            self._start_due(now)
            self._regroup_if_due(now)

    def _regroup_if_due(self, now: float) -> None:
        if self._regroup is None or self._regroup[0] > now:
            return
        reason, self._regroup = self._regroup[1], None
        if self._complete() and self._spend(reason, now):
            self._form_if_complete(now)

    def _check_deadline(self, member: Member, now: float) -> None:
        warming = member.phase is MemberPhase.WARMING
        limit_s = self._warming_limit_s if warming else self.settings.limit_s(member.phase)
        if reason := member.overdue(now, limit_s):
            hung = member.phase is MemberPhase.GROUPING
            if not hung and self._is_fatal(StartupTimeout):
                self._fail(StartupTimeout, f"{member.name} {reason}", now)
            else:
                self._on_lost(member, reason, now)
        elif silence := member.silence(now, lost_s=self.settings.heartbeat_lost_s):
            self._on_lost(member, silence, now)

    # ---- steps that events share ----

    def _announce(self) -> None:
        if self._engine:
            self._engine_epoch = self.epoch
            self._do(AnnounceReady(epoch=self.epoch))

    def _end_epoch(self, reason: str, now: float) -> None:
        """The current epoch serves no more; the leader hears of it if it knew the epoch."""
        if self.phase is GroupPhase.READY:
            self._enter(GroupPhase.RECOVERING, now)
            self._do(AnnounceLost(epoch=self.epoch, reason=reason))

    def _form_if_complete(self, now: float) -> None:
        """Begin the next epoch once every rank has a member with weights."""
        if not self._complete():
            return
        with_weights = list(self.by_rank().values())
        if ranks := self._retire():
            self.restarts_of_rank.update(ranks)
            self._replace(ranks, now)
            return
        self._regroup = None
        self.epoch += 1
        for member in with_weights:
            member.epochs += 1
            member.endpoint = None
            self._move(member, MemberPhase.GROUPING, now)
        warm_up = all(m.epochs == 1 for m in with_weights)
        self._warming_limit_s = self.settings.warm_up_s if warm_up else self.settings.join_s
        self._do(Form.of(self.epoch, with_weights, warm_up=warm_up))

    def _retire(self) -> list[int]:
        """End members that can form no other epoch, so that all load side by side; their ranks."""
        spent = [member for member in self.by_rank().values() if member.is_spent]
        for member in spent:
            self._remove(member)
        return [member.node_rank for member in spent]

    def _complete(self) -> bool:
        ranked = self.by_rank()
        return len(ranked) == self.settings.nodes and all(m.info for m in ranked.values())

    def _spend(self, reason: str, now: float) -> bool:
        """Take one restart out of the budget; False, and the group fails, if none is left."""
        if refusal := self._budget.spend(reason, now):
            self._fail(RestartBudgetSpent, refusal, now)
        return not refusal

    def _replace(self, ranks: list[int], now: float) -> None:
        """Fill ranks from the stand-bys, or with new processes after one backoff."""
        left = [rank for rank in ranks if not self._take_standby(rank, now)]
        self._replacements.await_start(left, now)
        self._start_due(now)

    def _take_standby(self, rank: int, now: float) -> bool:
        """Give `rank` to a stand-by, if there is one, and start another."""
        chosen = None if rank == STANDBY else self.lend_standby(now) or self._borrow(now)
        if chosen is None:
            return False
        self.members[chosen.follower_id] = chosen
        chosen.node_rank, chosen.group = rank, self.settings.name
        self._move(chosen, MemberPhase.LOADING, now)
        self._do(Welcomed(follower_id=chosen.follower_id, node_rank=rank))
        self._start_due(now)
        return True

    def lend_standby(self, now: float) -> Member | None:
        """Give a stand-by away, if there is one; another is started with the next event."""
        for member in self.members.values():
            if member.phase is MemberPhase.IDLE:
                self._replacements.pending.append((now, STANDBY))
                return self.members.pop(member.follower_id)
        return None

    def _start_due(self, now: float) -> None:
        for rank in self._replacements.due(now):
            self._start(rank, now)

    def _start(self, rank: int, now: float) -> None:
        self.serial += 1
        follower_id = self.settings.follower_id(rank, self.serial)
        self._add(follower_id, rank, now)
        self._do(StartFollower(follower_id=follower_id, node_rank=rank))

    def _add(self, follower_id: str, rank: int, now: float) -> None:
        self.members[follower_id] = Member(
            follower_id=follower_id, node_rank=rank, group=self.settings.name, since=now, heard=now
        )

    def _remove(self, member: Member) -> None:
        del self.members[member.follower_id]
        self._do(KillFollower(follower_id=member.follower_id))

    def _is_fatal(self, kind: type[RufusError]) -> bool:
        return is_fatal(kind, first_start=self.phase is GroupPhase.STARTING)

    def _fail(self, kind: type[RufusError], reason: str, now: float) -> None:
        self.failure = reason
        self._enter(GroupPhase.FAILED, now)
        self._do(FailGroup(kind=kind, reason=reason))

    def _enter(self, phase: GroupPhase, now: float) -> None:
        if phase is not self.phase:
            self.phase, self.phase_since = phase, now

    def _move(self, member: Member, phase: MemberPhase, now: float) -> None:
        member.phase, member.since = phase, now

    def _do(self, action: Action) -> None:
        self._actions.append(action)
