"""Every message of rufus-serve, as typed structs.

Three conversations share one encoding (`protocol.codec`):

- **steps**, leader → follower and back: see `protocol.step_messages`;
- **control**, follower → supervisor and back: `FollowerHello` … `Stop`;
- **link**, leader → supervisor and back: `LeaderHello` … `Drain`.

A new field needs a default, so that an older peer of the same protocol version still decodes.
"""

import msgspec

from rufus_serve.errors import FollowerError, RestartBudgetSpent
from rufus_serve.protocol.runtime_info import ArtifactUse, RuntimeInfo
from rufus_serve.protocol.step_messages import (
    Array,
    Candidates,
    ChosenTokens,
    LogitsRequest,
    MemoryOpened,
    Message,
    Phase,
    PromptScores,
    PromptWants,
    ReplyMemory,
    RowWants,
    StepFailed,
    StepHello,
    StepMessage,
    StepOrder,
    StepReply,
    StepRequest,
    StepWelcome,
    StoredReply,
)

__all__ = [
    "Array",
    "Candidates",
    "ChosenTokens",
    "LogitsRequest",
    "MemoryOpened",
    "Message",
    "Phase",
    "PromptScores",
    "PromptWants",
    "ReplyMemory",
    "RowWants",
    "RuntimeInfo",
    "StepFailed",
    "StepHello",
    "StepMessage",
    "StepOrder",
    "StepReply",
    "StepRequest",
    "StepWelcome",
    "StoredReply",
]

PROTOCOL_VERSION = 2
"""Raised when a peer of the older version could misread a message."""


# ---- control: follower <-> supervisor ----


class FollowerHello(Message, frozen=True):
    """A follower's first message."""

    protocol_version: int
    package_version: str
    config_hash: str
    follower_id: str
    """Unique per process, so that a restarted follower is told from its predecessor."""
    node_rank: int
    """-1: to be given by the supervisor."""
    host: str
    address: str
    """IP address that other nodes reach this one by."""
    pid: int


class Welcome(Message, frozen=True):
    """The supervisor takes the follower; it may load now."""

    node_rank: int
    num_followers_on_host: int = 1
    group: int = 0


class Refused(Message, frozen=True):
    """The supervisor does not take the follower; it exits with `HandshakeRefused`."""

    reason: str


class FollowerProgress(Message, frozen=True):
    """How far a follower is within its phase."""

    done: int = 0
    total: int = 0
    detail: str = ""


class FollowerLoaded(Message, frozen=True):
    """Weights are in memory."""

    info: RuntimeInfo
    load_count: int = 1
    """How often this process has loaded weights; stays 1 when adopted or regrouped."""


class FormGroup(Message, frozen=True):
    """Set up collectives for `epoch`; sent to all followers once all are loaded.

    The KV cache is void afterwards. A call still running is aborted first.
    """

    epoch: int
    node_rank: int
    num_nodes: int
    rendezvous: str
    """Name or tcp address, unique to the epoch, by which peers find and know each other."""
    same_host: bool
    num_blocks: int
    """Smallest number of KV blocks that any follower can hold."""
    warm_up: bool = True
    """Run every bucket once; left out when survivors of an earlier epoch take part."""


class FollowerForming(Message, frozen=True):
    """The follower began to form `epoch`."""

    epoch: int


class FollowerGaveUp(Message, frozen=True):
    """The follower lives and keeps its weights, but `epoch` cannot be formed."""

    epoch: int
    reason: str


class FollowerReady(Message, frozen=True):
    """Collectives stand and buckets are warm; steps of `epoch` are awaited at `endpoint`."""

    epoch: int
    endpoint: str
    warm_up_s: float = 0.0
    """What running every bucket once took; 0 if it was left out."""


class FollowerFailed(Message, frozen=True):
    """A follower cannot go on; `error` is its first error, in one paragraph."""

    phase: str
    error: str
    exit_code: int = FollowerError.exit_code
    """Of the error's class: it says whether another try may do better."""


class Heartbeat(Message, frozen=True):
    """Sign of life of a follower's interpreter, from a thread of its own."""

    stale_steps: int = 0
    """Steps so far that came too late to be run."""


class HeartbeatAck(Message, frozen=True):
    """The supervisor heard it; its absence tells a follower that the supervisor is gone."""


class Stop(Message, frozen=True):
    """End the process with exit code 0."""

    reason: str = ""


# ---- link: leader <-> supervisor ----


class LeaderHello(Message, frozen=True):
    """A leader process announces itself; answered by `GroupReady` when there is a group."""

    leader_id: str
    role: str
    """engine (steps followers) or api (serves HTTP)."""
    group: int = 0
    """Of an engine: whose followers it steps."""


class Serving(Message, frozen=True):
    """The API process of `leader_id` takes requests, health apart, from now on."""

    leader_id: str


class StepEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where one follower awaits steps."""

    node_rank: int
    host: str
    endpoint: str


class GroupReady(Message, frozen=True):
    """All followers of `epoch` await steps."""

    epoch: int
    endpoints: tuple[StepEndpoint, ...]
    info: RuntimeInfo


class EpochLost(Message, frozen=True):
    """`epoch` is over; a later `GroupReady` brings the next one. Told by whoever finds it lost."""

    epoch: int
    reason: str


class GroupFailed(Message, frozen=True):
    """No further epoch will come: the API process ends all requests, then itself."""

    reason: str
    exit_code: int = RestartBudgetSpent.exit_code


class LeaderProgress(Message, frozen=True):
    """Heartbeat of the engine."""

    steps_done: int
    steps_in_flight: int
    num_running: int = 0
    turns: int = 0
    """Times that the engine's main loop answered the API process."""
    follower_step_s: tuple[float, ...] = ()
    """Mean seconds of compute per step, by node rank, since the last heartbeat."""


class StatusRequest(Message, frozen=True):
    """Ask for `Status`."""


class FollowerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One follower as the supervisor sees it."""

    node_rank: int
    host: str
    pid: int
    phase: str
    phase_s: float
    load_count: int = 0
    restarts: int = 0
    """Processes that took this rank after a loss."""
    step_s: float = 0.0
    """Smoothed seconds of compute per step."""
    kernels: str = ""
    """As in `RuntimeInfo`."""
    group: int = 0
    silent_s: float = 0.0
    """Since its interpreter last said something."""
    load_s: float = 0.0
    """What its last load of weights took; 0 before it ended."""
    warm_up_s: float = 0.0
    """What its last warm-up took; 0 before one ended."""
    artifacts: ArtifactUse = ArtifactUse()
    """As in `RuntimeInfo`."""
    stale_steps: int = 0
    """Steps that reached its process too late to be run."""


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One group as the supervisor sees it."""

    group: int
    state: str
    """starting, ready, recovering, draining, drained, failed, stopped."""
    epoch: int
    healthy: bool
    """It serves, or may still come to serve within its deadline."""
    ready: bool
    """It would take a request now."""
    detail: str = ""
    restarts: int = 0
    recovery_s: float = 0.0
    """How long the last recovery took; 0 if there was none."""
    recoveries: int = 0
    """How many there were."""
    start_s: float = 0.0
    """From the start until the first epoch was ready; 0 before that."""
    engine_fault: str = ""
    """Why the engine counts as wedged; empty if it does not."""


class Status(Message, frozen=True):
    """The server as the supervisor sees it; of several groups, what the best of them is."""

    state: str
    """starting, ready, recovering, draining, drained, failed, stopped."""
    epoch: int
    """The highest of any group."""
    healthy: bool
    ready: bool
    detail: str = ""
    """What is wrong, of several groups with which."""
    restarts: int = 0
    """Of all groups together."""
    followers: tuple[FollowerStatus, ...] = ()
    recovery_s: float = 0.0
    """The longest of the groups' last recoveries; 0 if there was none."""
    groups: tuple[GroupStatus, ...] = ()
    cluster_up: bool = True
    """Whether followers could be started now; those that run need nothing of it."""
    cluster_restarts: int = 0
    """How often Ray was started again."""
    cluster_detail: str = ""


class GroupNews(Message, frozen=True):
    """Of several groups, one may have come or gone: the API process sends requests accordingly."""

    group: int
    state: str
    """open (takes requests), lost (its epoch is over, or none began yet), out (kept out of
    rotation), failed, gone (the server has it no more)."""
    reason: str = ""


class GroupIdle(Message, frozen=True):
    """The API process has no request left on a group that is out of rotation."""

    group: int


class RestartFollower(Message, frozen=True):
    """Ask the supervisor to replace one follower, keeping every request."""

    node_rank: int
    group: int = 0


class RestartGroup(Message, frozen=True):
    """Ask the supervisor to replace a group's followers and take it into rotation afterwards."""

    group: int


class DrainGroup(Message, frozen=True):
    """Ask the supervisor to keep a group out of rotation; its requests go to the others."""

    group: int


class Scale(Message, frozen=True):
    """Ask the supervisor to have so many groups from now on."""

    groups: int


class TraceSteps(Message, frozen=True):
    """Ask a group's engine to record its next steps."""

    num_steps: int
    path: str
    """File to write on the leader's host."""
    group: int = 0


class Drain(Message, frozen=True):
    """Admit nothing more; finish or cancel within `grace_s`, then exit."""

    grace_s: float
    keep_followers: bool = False
    """Leave the followers waiting for the next leader (on_leader_loss: wait)."""


class Ack(Message, frozen=True):
    """A request was taken, or `error` says why not."""

    error: str = ""


ControlMessage = (
    FollowerHello | Welcome | Refused | FollowerProgress | FollowerLoaded | FormGroup
    | FollowerForming | FollowerGaveUp | FollowerReady | FollowerFailed | Heartbeat | HeartbeatAck
    | Stop
)  # fmt: skip
Order = StatusRequest | RestartFollower | RestartGroup | DrainGroup | Scale | TraceSteps | Drain
"""What a command asks of a running supervisor."""
LinkMessage = (
    LeaderHello | GroupReady | EpochLost | GroupFailed | LeaderProgress
    | Serving | StatusRequest | Status | GroupNews | GroupIdle | RestartFollower | RestartGroup
    | DrainGroup | Scale | TraceSteps | Drain | Ack
)  # fmt: skip
AnyMessage = StepMessage | ControlMessage | LinkMessage
