"""`StepInbox`: which leader a follower obeys, and the steps it has queued; pure.

Peers are told apart by whatever names the transport gives them.
"""

import logging
from collections import deque

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.ledger import mismatch
from rufus_serve.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    LogitsRequest,
    StepFailed,
    StepHello,
    StepOrder,
    StepReply,
    StepRequest,
    StepWelcome,
)

_log = logging.getLogger(__name__)

Peer = bytes


class StepInbox:
    """Steps of the current epoch, from the leader that shook hands for it last."""

    def __init__(self, info: HelloInfo, node_rank: int) -> None:
        self._info = info
        self._node_rank = node_rank
        self._epoch = -1
        self._leader: Peer | None = None
        self._early: tuple[Peer, StepHello] | None = None
        self._steps: deque[StepOrder] = deque()
        self.num_stale = 0
        """Steps so far that came of a past epoch or of a leader that is not obeyed any more."""

    def begin(self, epoch: int) -> tuple[Peer, StepWelcome] | None:
        """Forget the last epoch; a welcome to send, if a leader knocked for this one already."""
        self._epoch = epoch
        self._leader = None
        self._steps.clear()
        early, self._early = self._early, None
        if early is None or early[1].epoch < epoch:
            return None
        answer = self.take(*early)
        return None if answer is None else (early[0], answer)

    def take(self, peer: Peer, message: AnyMessage) -> StepWelcome | None:
        """Note a message; the answer to send to `peer`, if there is one."""
        match message:
            case StepHello():
                return self._take_hello(peer, message)
            case StepRequest() | LogitsRequest() if self._is_current(peer, message):
                self._steps.append(message)
            case _:
                self.num_stale += 1
                _log.debug("dropped %s of a past epoch or leader", type(message).__name__)
        return None

    def _is_current(self, peer: Peer, order: StepOrder) -> bool:
        return peer == self._leader and order.epoch == self._epoch

    def next_step(self) -> StepOrder | None:
        """The oldest step not yet taken."""
        return self._steps.popleft() if self._steps else None

    def recipient(self, message: StepReply | StepFailed) -> Peer | None:
        """Who gets an answer; None if its epoch or its leader is gone."""
        return self._leader if message.epoch == self._epoch else None

    def forget_leader(self) -> None:
        """The leader's connection is gone; a new handshake is needed."""
        self._leader = None
        self._steps.clear()

    def _take_hello(self, peer: Peer, hello: StepHello) -> StepWelcome | None:
        reason = mismatch(
            self._info,
            my_name="the follower",
            their_name="the leader",
            their_version=hello.protocol_version,
            their_hash=hello.config_hash,
        )
        if reason:
            _log.warning("refused leader %s: %s", hello.leader_id, reason)
            return self._welcome(hello.epoch, refused=reason)
        if hello.epoch > self._epoch:
            # This follower is a moment late: it was announced, but has not begun the epoch.
            self._early = (peer, hello)
            return None
        if hello.epoch == self._epoch:
            self._leader = peer
            self._steps.clear()
            _log.info("leader %s steps epoch %d", hello.leader_id, self._epoch)
        return self._welcome(self._epoch)

    def _welcome(self, epoch: int, *, refused: str = "") -> StepWelcome:
        return StepWelcome(
            protocol_version=PROTOCOL_VERSION,
            config_hash=self._info.config_hash,
            epoch=epoch,
            node_rank=self._node_rank,
            refused=refused,
        )
