"""`SocketCommunicator`: collectives of followers on several hosts, through node rank 0.

Followers send to rank 0, which adds in rank order and sends the sum back: two hops, where a
ring would take 2(N - 1), and steps are made of many small sums. Torch's Gloo took 0.45 ms for
such a sum on loopback, and cannot give up one that hangs without blocking the process.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

import torch

from rufus_serve.errors import CollectiveAborted
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu.meeting import Meeting

_POLL_MS = 20


class SocketCommunicator:
    """See `Communicator`."""

    def __init__(self, group: GroupSpec, *, aborted: threading.Event, deadline_s: float) -> None:
        self.wait_s = 0.0
        """Seconds spent waiting for peers so far."""
        self._rank = group.node_rank
        self._aborted = aborted
        self._deadline_s = deadline_s
        self._meeting = Meeting(group, aborted=aborted, deadline_s=deadline_s)
        try:
            self.all_reduce(torch.zeros(1))
        except BaseException:
            self.close()
            raise

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of the followers' contiguous `tensor`s, added in rank order; in place."""
        if self._rank:
            self._send(0, tensor)
            self._receive(0, tensor)
            return tensor
        ranks = sorted(self._meeting.peers)
        received = tensor.new_empty(len(ranks), *tensor.shape)
        for rank, part in zip(ranks, received, strict=True):
            self._receive(rank, part)
            tensor += part
        for rank in ranks:
            self._send(rank, tensor)
        return tensor

    def gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor] | None:
        """On node rank 0 the followers' `tensor`s [R, widths[rank]] by rank, else None."""
        if self._rank:
            self._send(0, tensor.contiguous())
            return None
        parts = [tensor, *(tensor.new_empty(tensor.shape[0], width) for width in widths[1:])]
        for rank, part in enumerate(parts[1:], start=1):
            self._receive(rank, part)
        return parts

    def close(self) -> None:
        """Leave the group."""
        self._meeting.close()

    def _send(self, rank: int, tensor: torch.Tensor) -> None:
        peer, unsent = self._peer(rank), _bytes_of(tensor)
        while unsent:
            num_sent = self._attempt(rank, lambda left=unsent: peer.send(left))  # type: ignore[misc]
            if num_sent is None:
                self._wait(rank, peer, select.POLLOUT)
            else:
                unsent = unsent[num_sent:]

    def _receive(self, rank: int, tensor: torch.Tensor) -> None:
        peer, missing = self._peer(rank), _bytes_of(tensor)
        while missing:
            num_received = self._attempt(
                rank,
                lambda left=missing: peer.recv_into(left),  # type: ignore[misc]
            )
            if num_received is None:
                self._wait(rank, peer, select.POLLIN)
            elif num_received == 0:
                raise CollectiveAborted(f"follower {rank} left the group")
            else:
                missing = missing[num_received:]

    def _attempt(self, rank: int, transfer: Callable[[], int]) -> int | None:
        """Bytes transferred, None if none can be at the moment."""
        try:
            return transfer()
        except BlockingIOError:
            return None
        except OSError as error:
            raise CollectiveAborted(f"follower {rank} left the group: {error}") from error

    def _peer(self, rank: int) -> socket.socket:
        self._raise_if_aborted()
        return self._meeting.peers[rank]

    def _wait(self, rank: int, peer: socket.socket, events: int) -> None:
        """Wait until `peer` can be read from or written to, or is gone."""
        poller = select.poll()
        poller.register(peer, events)
        started = time.perf_counter()
        try:
            while not poller.poll(_POLL_MS):
                self._raise_if_aborted()
                lost = self._meeting.lost_peer()
                if lost is not None:
                    raise CollectiveAborted(f"follower {lost} left the group")
                if time.perf_counter() - started > self._deadline_s:
                    raise CollectiveAborted(
                        f"follower {rank} was silent in a collective for {self._deadline_s:g} s"
                    )
        finally:
            self.wait_s += time.perf_counter() - started

    def _raise_if_aborted(self) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted("the collective was aborted on this follower")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data
