"""`StepLedger`: what a leader knows of its followers' answers; pure, no thread, no socket."""

from collections.abc import Sequence

from rufus_serve.channel.base import NOBODY, FollowerLost, HelloInfo
from rufus_serve.errors import HandshakeRefused
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    StepEndpoint,
    StepFailed,
    StepHello,
    StepOrder,
    StepReply,
    StepWelcome,
)


def mismatch(
    mine: HelloInfo, *, my_name: str, their_name: str, their_version: int, their_hash: str
) -> str:
    """Why the two sides cannot work together, with both values; empty if they can."""
    if their_version != PROTOCOL_VERSION:
        return (
            f"{my_name} speaks protocol {PROTOCOL_VERSION}, {their_name} protocol "
            f"{their_version}; install the same rufus-serve version on both"
        )
    if their_hash != mine.config_hash:
        return (
            f"{my_name} runs configuration {mine.config_hash}, {their_name} {their_hash}; "
            "start both from the same configuration file"
        )
    return ""


class StepLedger:
    """Answers of one epoch: fed with all that arrives, asked for what is complete."""

    def __init__(self, info: HelloInfo) -> None:
        self._info = info
        self.num_stale = 0
        """Answers so far that came too late, of a past epoch or of a step that was answered."""
        self.begin(-1, ())

    @property
    def epoch(self) -> int:
        """The current epoch; -1 before the first."""
        return self._epoch

    def begin(self, epoch: int, endpoints: Sequence[StepEndpoint]) -> None:
        """Forget all of the last epoch, and expect a welcome from every endpoint."""
        self._epoch = epoch
        self._followers = {endpoint.node_rank: endpoint for endpoint in endpoints}
        self._welcomed: set[int] = set()
        self._open: dict[int, dict[int, StepReply]] = {}
        self._refused: HandshakeRefused | None = None
        self._gone: FollowerLost | None = None
        self._heard_out: set[int] = set()
        """Followers that said, or whose end says, why they will answer no more."""
        self._awaits_cause = False

    def hello(self) -> StepHello:
        """What this leader says to every follower first."""
        return StepHello(
            protocol_version=PROTOCOL_VERSION,
            config_hash=self._info.config_hash,
            epoch=self._epoch,
            leader_id=self._info.sender_id,
        )

    def expect(self, step: StepOrder) -> bool:
        """Open the books for `step`; False if nobody may see it, being of another epoch."""
        if step.epoch != self._epoch or self._gone is not None:
            return False
        self._open[step.step_id] = {}
        return True

    def take(self, node_rank: int, message: AnyMessage) -> None:
        """Note a message that came from the follower of `node_rank`."""
        match message:
            case StepWelcome():
                self._take_welcome(node_rank, message)
            case StepReply(epoch=self._epoch, step_id=step_id) if step_id in self._open:
                self._open[step_id].setdefault(node_rank, message)
            case StepFailed(epoch=self._epoch):
                self._take_failure(node_rank, message)
            case _:
                self.num_stale += 1

    def lose(self, node_rank: int, reason: str) -> None:
        """Note that a follower is lost; the first loss of an epoch is the one that counts."""
        self._heard_out.add(node_rank)
        if self._gone is None:
            self._gone = FollowerLost(node_rank, reason)

    def is_explained(self) -> bool:
        """Whether nothing is still to come that tells why the epoch ended.

        A follower that says "a peer is gone" may have been heard before the peer whose runtime
        refused the step, which is the cause.
        """
        return not self._awaits_cause or self._heard_out >= self._followers.keys()

    @property
    def gone(self) -> FollowerLost:
        """The loss on record, as a fresh exception: one raised twice piles up tracebacks."""
        assert self._gone is not None
        gone = self._gone
        return FollowerLost(gone.node_rank, gone.reason, refused_step=gone.refused_step)

    def refuse(self, node_rank: int, reason: str) -> None:
        """Note that a follower and this leader cannot work together."""
        follower = self._followers[node_rank]
        self._refused = HandshakeRefused(
            f"follower {node_rank} on {follower.host} ({follower.endpoint}): {reason}"
        )

    def all_welcome(self) -> bool:
        """Whether every follower has shaken hands.

        Raises:
            HandshakeRefused: a follower and this leader cannot work together.
            FollowerLost: a follower is lost.
        """
        if self._refused is not None:
            raise self._refused
        if self._gone is not None:
            raise self.gone
        return len(self._welcomed) == len(self._followers)

    def unheard(self, deadline_s: float) -> FollowerLost:
        """The first follower without a handshake after `deadline_s`, as lost."""
        rank = min(self._followers.keys() - self._welcomed)
        follower = self._followers[rank]
        where = f"{follower.host} ({follower.endpoint})"
        self.lose(rank, f"no answer to the handshake from {where} within {deadline_s:.3g} s")
        return self.gone

    def complete(self, step_id: int) -> list[StepReply] | None:
        """All replies to a step by node rank, once; None while some are missing.

        Raises:
            FollowerLost: some are missing and will not come.
        """
        replies = self._open.get(step_id, {})
        if self._followers and len(replies) == len(self._followers):
            del self._open[step_id]
            return [replies[rank] for rank in sorted(replies)]
        if self._gone is not None:
            raise self.gone
        return None

    def silent(self, step_id: int, deadline_s: float) -> FollowerLost:
        """The first follower whose reply is missing after `deadline_s`, as lost.

        It stays lost for the epoch: what it says later would be answers to forgotten steps.
        """
        missing = self._followers.keys() - self._open.get(step_id, {}).keys()
        rank = min(missing, default=NOBODY)
        self.lose(rank, f"silent on step {step_id} for {deadline_s:.3g} s")
        return self.gone

    def _take_failure(self, node_rank: int, failed: StepFailed) -> None:
        reason = f"step {failed.step_id} failed: {failed.error}"
        if not failed.refused:
            self._awaits_cause = self._awaits_cause or self._gone is None
        elif self._gone is None or self._awaits_cause:
            self._gone = FollowerLost(node_rank, reason, refused_step=failed.step_id)
            self._awaits_cause = False
        self.lose(node_rank, reason)

    def _take_welcome(self, node_rank: int, welcome: StepWelcome) -> None:
        reason = mismatch(
            self._info,
            my_name="the leader",
            their_name="the follower",
            their_version=welcome.protocol_version,
            their_hash=welcome.config_hash,
        )
        if reason or (welcome.refused and welcome.epoch == self._epoch):
            self.refuse(node_rank, reason or welcome.refused)
        elif welcome.node_rank != node_rank:
            self.refuse(node_rank, f"answers as node rank {welcome.node_rank}")
        elif welcome.epoch > self._epoch:
            self.lose(node_rank, f"epoch {self._epoch} is over, it is at {welcome.epoch}")
        elif welcome.epoch == self._epoch:
            self._welcomed.add(node_rank)
