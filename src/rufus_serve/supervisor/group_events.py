"""The vocabulary of `GroupState`: members and phases, events in, actions out.

Phases of a member:

    PLACING -> STARTING -> LOADING -> LOADED -> GROUPING -> WARMING -> READY
                                           ^-------- next epoch --------'

Phases of the group:

    STARTING -> READY <-> RECOVERING,  and from anywhere  FAILED  or  STOPPED
"""

from collections.abc import Sequence
from enum import Enum

import msgspec

from rufus_serve.errors import FollowerError, RufusError
from rufus_serve.protocol.messages import RuntimeInfo, StepEndpoint
from rufus_serve.protocol.specs import STANDBY as STANDBY  # noqa: PLC0414 - told on from here


class MemberPhase(str, Enum):
    """How far one follower has come."""

    PLACING = "waiting for a node"
    STARTING = "starting"
    IDLE = "stand-by"
    LOADING = "loading"
    LOADED = "loaded"
    GROUPING = "grouping"
    WARMING = "warming up"
    READY = "ready"


class GroupPhase(str, Enum):
    """What the group as a whole is doing."""

    STARTING = "starting"
    READY = "ready"
    RECOVERING = "recovering"
    FAILED = "failed"
    STOPPED = "stopped"


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the state machine needs of the configuration; seconds throughout."""

    nodes: int
    standby_nodes: int = 0
    name: str = ""
    """Of the group, where there are several: what its followers' names begin with."""
    join_s: float = 60.0
    load_s: float = 1800.0
    regroup_s: float = 5.0
    """For a member to take notice of a new epoch; a hung one does not."""
    settle_s: float = 0.3
    """For a dead process to be noticed before its group is formed anew with the same members."""
    warm_up_s: float = 1800.0
    heartbeat_lost_s: float = 5.0
    max_restarts: int = 10
    window_s: float = 600.0
    backoff_s: float = 0.2
    max_backoff_s: float = 30.0
    deadline_s: float = 600.0
    deadline_follows_start: bool = False
    """Whether it grows to twice what the last start or recovery took."""

    def follower_id(self, rank: int, serial: int) -> str:
        """Name of the group's process number `serial`; unique among all groups'."""
        words = [self.name, "standby" if rank == STANDBY else str(rank)]
        return f"{'-'.join(filter(None, words))}.{serial}"

    def limit_s(self, phase: MemberPhase) -> float | None:
        """How long a member may be in `phase`; None for as long as it likes."""
        limits = {
            MemberPhase.STARTING: self.join_s,
            MemberPhase.LOADING: self.load_s,
            MemberPhase.GROUPING: self.regroup_s,
            MemberPhase.WARMING: self.warm_up_s,
        }
        return limits.get(phase)


class Member(msgspec.Struct, kw_only=True):
    """One follower process; owned and mutated by `GroupState` alone."""

    follower_id: str
    node_rank: int
    group: str = ""
    """Name of its group, where there are several."""
    since: float
    heard: float
    """When its interpreter last said something."""
    connected: float = 0.0
    """When its connection was last known to stand."""
    phase: MemberPhase = MemberPhase.PLACING
    host: str = ""
    address: str = ""
    pid: int = 0
    epochs: int = 0
    """Epochs joined by this process."""
    load_count: int = 0
    info: RuntimeInfo | None = None
    warm_up_s: float = 0.0
    """What its last warm-up took."""
    stale_steps: int = 0
    """Steps that reached its process too late to be run."""
    endpoint: StepEndpoint | None = None

    def note(self, event: "MemberEvent", now: float) -> None:
        """It gave this sign of life."""
        self.connected = now
        if not isinstance(event, Connected):
            self.heard = now
        if isinstance(event, Heard):
            self.stale_steps = max(self.stale_steps, event.stale_steps)

    def overdue(self, now: float, limit_s: float | None) -> str:
        """Why it has been in its phase for too long, if it has."""
        spent_s = now - self.since
        if limit_s is None or spent_s <= limit_s:
            return ""
        return f"still {self.phase.value} after {spent_s:.1f} s (limit {limit_s:g} s)"

    def silence(self, now: float, *, lost_s: float) -> str:
        """Why it counts as dead, if it does.

        What it loads or runs for the first time may hold its interpreter up to the limit of the
        phase. Then its connection alone is looked at, which ends after half of `lost_s`.
        """
        silent_s = now - self.heard
        if self.phase in (MemberPhase.PLACING, MemberPhase.STARTING):
            return ""
        if self.phase in (MemberPhase.LOADING, MemberPhase.WARMING):
            gone_s = now - self.connected
            return f"not connected for {gone_s:.1f} s" if gone_s > lost_s / 2 else ""
        return f"no sign of life for {silent_s:.1f} s" if silent_s > lost_s else ""

    @property
    def title(self) -> str:
        """What people call it."""
        if self.node_rank == STANDBY:
            return "stand-by"
        return (
            f"follower {self.group}/{self.node_rank}"
            if self.group
            else (f"follower {self.node_rank}")
        )

    @property
    def name(self) -> str:
        """Its title and where it is."""
        return f"{self.title} on {self.host}" if self.host else self.title

    @property
    def is_spent(self) -> bool:
        """Whether it was in an epoch and can be in no other."""
        return bool(self.epochs) and self.info is not None and not self.info.can_rejoin


# ---- events ----


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""


class MemberEvent(Event, frozen=True):
    """Something that happened to one follower process."""

    follower_id: str


class Launched(MemberEvent, frozen=True):
    """A follower's process was started."""


class Joined(MemberEvent, frozen=True):
    """A follower said hello (again, after a lost connection)."""

    host: str = ""
    address: str = ""
    pid: int = 0


class Loaded(MemberEvent, frozen=True):
    """A follower holds its weights."""

    info: RuntimeInfo
    load_count: int = 1


class Grouping(MemberEvent, frozen=True):
    """A follower began to form the epoch it was told of."""

    epoch: int


class GaveUp(MemberEvent, frozen=True):
    """A follower lives, but its collectives were aborted while the epoch formed."""

    epoch: int
    reason: str = ""


class Ready(MemberEvent, frozen=True):
    """A follower awaits steps of the epoch."""

    epoch: int
    endpoint: StepEndpoint
    warm_up_s: float = 0.0
    """0 if there was none."""


class Heard(MemberEvent, frozen=True):
    """A sign of life."""

    stale_steps: int = 0
    """As many as it has told of so far; 0 if it says nothing of them."""


class Connected(MemberEvent, frozen=True):
    """Its process runs, as its connection answers; whether its interpreter does is not said."""


class Lost(MemberEvent, frozen=True):
    """A follower process is gone or beyond hope, whatever it says."""

    reason: str


class Failed(MemberEvent, frozen=True):
    """A follower ended, or said that it will: of an error of class `kind`."""

    reason: str
    kind: type[RufusError] = FollowerError


class EpochLost(Event, frozen=True):
    """The engine lost the epoch."""

    epoch: int
    reason: str


class EngineJoined(Event, frozen=True):
    """A leader's engine is there and wants a group."""

    leader_id: str


class Stepped(Event, frozen=True):
    """The engine has done so many steps since it was started."""

    steps_done: int


class EngineFailed(Event, frozen=True):
    """The engine can step no group any more, for an error of class `kind`."""

    reason: str
    kind: type[RufusError]


class RestartAsked(Event, frozen=True):
    """Somebody wants the followers of these ranks replaced."""

    node_ranks: tuple[int, ...]


class Stopping(Event, frozen=True):
    """The group is being shut down."""


class Tick(Event, frozen=True):
    """Time has passed."""


# ---- actions ----


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Something the supervisor has to do."""


class StartFollower(Action, frozen=True):
    """Start a process for this rank (or a stand-by)."""

    follower_id: str
    node_rank: int


class KillFollower(Action, frozen=True):
    """Make sure that this process is gone."""

    follower_id: str


class Welcomed(Action, frozen=True):
    """Tell the follower its rank; it loads if it holds no weights yet."""

    follower_id: str
    node_rank: int


class Form(Action, frozen=True):
    """Tell every member to form this epoch."""

    epoch: int
    members: tuple[tuple[str, int], ...]
    """(follower id, node rank), by rank."""
    num_blocks: int
    addresses: tuple[str, ...]
    warm_up: bool
    """Whether all members are new."""

    @classmethod
    def of(cls, epoch: int, members: Sequence[Member], *, warm_up: bool) -> "Form":
        """For `members` with weights, in the order of their ranks."""
        return cls(
            epoch=epoch,
            members=tuple((member.follower_id, member.node_rank) for member in members),
            num_blocks=min(member.info.num_blocks for member in members if member.info),
            addresses=tuple(member.address for member in members),
            warm_up=warm_up,
        )


class AnnounceReady(Action, frozen=True):
    """Tell the leader that the epoch may be stepped."""

    epoch: int


class AnnounceLost(Action, frozen=True):
    """Tell the leader that the epoch is over."""

    epoch: int
    reason: str


class FailGroup(Action, frozen=True):
    """Give up: answer every request with an error and exit as errors of class `kind` do."""

    reason: str
    kind: type[RufusError]
