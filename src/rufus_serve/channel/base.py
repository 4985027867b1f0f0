"""`LeaderChannel` and `FollowerChannel`: step messages, out to all and back to one.

Order is kept per follower. Frames of another epoch than the current one are dropped on both
sides. Every wait has a deadline. Implementations: `zeromq`, `inproc`; one contract suite.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from rufus_serve.protocol.messages import StepEndpoint, StepFailed, StepOrder, StepReply

NOBODY = -1
"""Node rank of a loss that is no follower's fault."""


class FollowerLost(Exception):
    """A follower is lost: no reply in time, a closed connection, or a failed step.

    Of rank `NOBODY`, and all of them, where the leader's own side gave the epoch up.
    """

    def __init__(self, node_rank: int, reason: str, *, refused_step: int | None = None) -> None:
        super().__init__(reason if node_rank == NOBODY else f"follower {node_rank}: {reason}")
        self.node_rank = node_rank
        self.reason = reason
        self.refused_step = refused_step
        """Id of the step that its runtime refused; None if the epoch ended of something else."""


class HelloInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What each side of a channel says of itself in the handshake."""

    config_hash: str
    sender_id: str


class LeaderChannel(Protocol):
    """The leader's side; one thread calls it, but for `abandon` and `close`, which any may."""

    @property
    def num_stale(self) -> int:
        """Answers so far that came too late, of a past epoch or of a step that was answered."""

    def connect(self, epoch: int, endpoints: Sequence[StepEndpoint], *, deadline_s: float) -> None:
        """Drop the old epoch's connections and shake hands with every follower of `epoch`.

        Raises:
            HandshakeRefused: a follower has another version or configuration; it is named.
            FollowerLost: a follower did not answer within `deadline_s`.
        """

    def broadcast(self, step: StepOrder) -> None:
        """Queue `step` for every follower; never blocks. Its arrays may be reused at once."""

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        """Replies to `step_id` by node rank, once all are in.

        Raises:
            FollowerLost: one failed, closed, or stayed silent past `deadline_s`. The epoch is
                over then: only steps whose replies are all in can still be gathered.
        """

    def abandon(self, epoch: int, reason: str) -> None:
        """Give up `epoch`, and any before it; never blocks, any thread.

        A call of the owner's that waits ends with `FollowerLost` of rank `NOBODY` within 0.1 s,
        and so does a later `connect` to such an epoch. Sockets are closed by the owner's calls.
        """

    def close(self) -> None:
        """Close the sockets; may be called twice."""


class FollowerChannel(Protocol):
    """A follower's side; one thread calls it, but for `close`. It shakes hands in `receive`."""

    @property
    def num_stale(self) -> int:
        """Steps so far that came of a past epoch or of a past leader; any thread."""

    @property
    def endpoint(self) -> StepEndpoint:
        """Where this follower awaits its leader."""

    def begin(self, epoch: int) -> None:
        """Accept steps of `epoch` only, from the leader that shakes hands for it."""

    def receive(self, *, timeout_s: float) -> StepOrder | None:
        """The next step of the epoch, or None after `timeout_s`."""

    def reply(self, message: StepReply | StepFailed) -> None:
        """Queue an answer; never blocks. Its arrays may be reused at once."""

    def close(self) -> None:
        """Close the sockets; may be called twice."""
