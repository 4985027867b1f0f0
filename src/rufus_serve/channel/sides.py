"""The two sides of a step channel, over any transport.

The calling thread pumps the transport itself while it waits: a Python thread in between would
add two hand-overs, each behind the interpreter lock, to every step. What goes on while nobody
waits (encryption, queues, pings) is the transport's own business, in libzmq's IO thread.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from rufus_serve.channel.base import NOBODY, FollowerLost, HelloInfo
from rufus_serve.channel.inbox import Peer, StepInbox
from rufus_serve.channel.ledger import StepLedger
from rufus_serve.errors import HandshakeRefused
from rufus_serve.protocol.messages import (
    Message,
    StepEndpoint,
    StepFailed,
    StepOrder,
    StepReply,
)

_T = TypeVar("_T")

CAUSE_S = 0.5
"""How long the cause of a failed step may come after its consequences."""

SLICE_S = 0.1
"""Longest uninterrupted wait, hence how soon a waiting call notices `close`."""


class LeaderSide(ABC):
    """`LeaderChannel` over a transport; one thread calls it and owns the ledger.

    `abandon` and `close` come from any thread. They leave word, which the owner finds whenever
    it looks at the ledger.
    """

    def __init__(self, info: HelloInfo) -> None:
        self._ledger = StepLedger(info)
        self._word = threading.Lock()
        self._abandoned = (-2, "")
        """The newest epoch given up, and why."""

    @property
    def num_stale(self) -> int:
        """See `LeaderChannel.num_stale`."""
        return self._ledger.num_stale

    def connect(self, epoch: int, endpoints: Sequence[StepEndpoint], *, deadline_s: float) -> None:
        """See `LeaderChannel.connect`."""
        self._drop()
        self._ledger.begin(epoch, endpoints)
        try:
            self._open(endpoints)
            self._send(self._ledger.hello())
            if self._wait(lambda: self._ledger.all_welcome() or None, deadline_s) is None:
                raise self._ledger.unheard(deadline_s)
        except (HandshakeRefused, FollowerLost):
            self._drop()
            raise

    def broadcast(self, step: StepOrder) -> None:
        """See `LeaderChannel.broadcast`."""
        self._heed()
        if self._ledger.expect(step):
            self._send(step)

    def gather(self, step_id: int, *, deadline_s: float) -> list[StepReply]:
        """See `LeaderChannel.gather`."""
        try:
            replies = self._wait(lambda: self._ledger.complete(step_id), deadline_s)
        except FollowerLost:
            self._wait(lambda: self._ledger.is_explained() or None, CAUSE_S)
            raise self._ledger.gone from None
        if replies is None:
            raise self._ledger.silent(step_id, deadline_s)
        return replies

    def abandon(self, epoch: int, reason: str) -> None:
        """See `LeaderChannel.abandon`."""
        with self._word:
            if epoch > self._abandoned[0]:
                self._abandoned = (epoch, reason)

    def _heed(self) -> None:
        """Lose the epoch if it was given up meanwhile."""
        epoch, reason = self._abandoned
        if epoch >= self._ledger.epoch:
            self._ledger.lose(NOBODY, reason)

    def _wait(self, ask: Callable[[], _T | None], deadline_s: float) -> _T | None:
        """The first answer of `ask` that is not None; None after `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        wait_s = 0.0
        while True:
            self._pump(wait_s)
            self._heed()
            answer = ask()
            left_s = deadline - time.monotonic()
            if answer is not None or left_s <= 0:
                return answer
            wait_s = min(left_s, SLICE_S)

    @abstractmethod
    def _open(self, endpoints: Sequence[StepEndpoint]) -> None:
        """Begin to connect."""

    @abstractmethod
    def _drop(self) -> None:
        """Close all connections; may be called twice."""

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Queue for every follower; never blocks."""

    @abstractmethod
    def _pump(self, timeout_s: float) -> None:
        """Feed the ledger with what has arrived, or arrives within `timeout_s`."""


class FollowerSide(ABC):
    """`FollowerChannel` over a transport; one thread calls it, `close` comes from any."""

    def __init__(self, info: HelloInfo, node_rank: int) -> None:
        self._inbox = StepInbox(info, node_rank)

    @property
    def num_stale(self) -> int:
        """See `FollowerChannel.num_stale`."""
        return self._inbox.num_stale

    def begin(self, epoch: int) -> None:
        """See `FollowerChannel.begin`."""
        while self._pump(0.0):
            pass
        answer = self._inbox.begin(epoch)
        if answer is not None:
            self._send(*answer)

    def receive(self, *, timeout_s: float) -> StepOrder | None:
        """See `FollowerChannel.receive`."""
        deadline = time.monotonic() + timeout_s
        wait_s = 0.0
        while True:
            busy = self._pump(wait_s)
            step = self._inbox.next_step()
            left_s = deadline - time.monotonic()
            if step is not None or left_s <= 0:
                return step
            wait_s = 0.0 if busy else min(left_s, SLICE_S)

    def reply(self, message: StepReply | StepFailed) -> None:
        """See `FollowerChannel.reply`."""
        leader = self._inbox.recipient(message)
        if leader is not None:
            self._send(leader, message)

    @abstractmethod
    def _send(self, peer: Peer, message: Message) -> None:
        """Queue for one leader; never blocks, nothing happens if it is gone."""

    @abstractmethod
    def _pump(self, timeout_s: float) -> bool:
        """Feed the inbox with one message, if one arrives within `timeout_s`; whether it did."""
