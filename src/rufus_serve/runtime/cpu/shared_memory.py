"""`SharedMemoryCommunicator`: collectives of followers on one host.

Memory: one counter per follower, then two areas of one slot per follower. Operation n uses
area n % 2: a follower writes its slot, sets its counter to n, and reads the others' slots once
their counters reach n. Nobody overwrites what is still being read, because a slot is written
for operation n only once every counter has reached n - 1, by when all have read n - 2.
"""

import mmap
import os
import threading
import time
from collections.abc import Sequence

import torch

from rufus_serve.errors import CollectiveAborted
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu import futex
from rufus_serve.runtime.cpu.meeting import Meeting

_CACHE_LINE_BYTES = 64
_COUNTER_BYTES = 8
_SLOT_BYTES = 1 << 20
# Covers the usual spread between followers; sleeping and waking takes as long.
_SPIN_S = 50e-6
_CHECK_S = 0.02


class SharedMemoryCommunicator:
    """See `Communicator`. Larger tensors than a slot take several operations."""

    def __init__(self, group: GroupSpec, *, aborted: threading.Event, deadline_s: float) -> None:
        self._rank = group.node_rank
        self._num_nodes = group.num_nodes
        self._aborted = aborted
        self._deadline_s = deadline_s
        self.wait_s = 0.0
        """Seconds spent waiting for peers so far."""
        header_bytes = group.num_nodes * _CACHE_LINE_BYTES
        size_bytes = header_bytes + 2 * group.num_nodes * _SLOT_BYTES
        own_fd = _memory_file(size_bytes) if group.node_rank == 0 else None
        try:
            self._meeting = Meeting(group, aborted=aborted, deadline_s=deadline_s, shared_fd=own_fd)
        except BaseException:
            if own_fd is not None:
                os.close(own_fd)
            raise
        memory_fd = self._meeting.shared_fd
        if memory_fd is None:
            self._meeting.close()
            raise CollectiveAborted("follower 0 shares no memory: does it use sockets?")
        memory = mmap.mmap(memory_fd, size_bytes)
        os.close(memory_fd)
        # A memoryview stores 8 aligned bytes with one instruction and reads them afresh.
        self._counters = memoryview(memory)[:header_bytes].cast("Q")
        step = _CACHE_LINE_BYTES // _COUNTER_BYTES
        self._counter_indices = range(0, group.num_nodes * step, step)
        areas = torch.frombuffer(memory, dtype=torch.uint8, offset=header_bytes)
        self._counters_address = areas.data_ptr() - header_bytes
        self._areas = areas.view(2, group.num_nodes, _SLOT_BYTES)
        self._views: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}
        self._operation = 0
        try:
            self.all_reduce(torch.zeros(1))
        except BaseException:
            self.close()
            raise

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of the followers' contiguous `tensor`s, added in rank order; in place."""
        flat = tensor.view(-1)
        size = _SLOT_BYTES // tensor.itemsize
        if flat.numel() <= size:
            self._sum(flat)
            return tensor
        for start in range(0, flat.numel(), size):
            self._sum(flat[start : start + size])
        return tensor

    def gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor] | None:
        """On node rank 0 the followers' `tensor`s [R, widths[rank]] by rank, else None."""
        num_rows = tensor.shape[0]
        own = tensor.contiguous().view(-1)
        size = _SLOT_BYTES // tensor.itemsize
        parts = [tensor.new_empty(num_rows, width) for width in widths] if not self._rank else None
        flat_parts = [part.view(-1) for part in parts or ()]
        for start in range(0, num_rows * max(widths), size):
            chunk = own[start : start + size]
            self._publish(chunk)
            if flat_parts:
                self._wait_for(self._operation)
            for rank, flat in enumerate(flat_parts):
                target = flat[start : start + size]
                target.copy_(self._slots(target.numel(), tensor.dtype)[rank])
        return parts

    def close(self) -> None:
        """Leave the group; the memory goes with its last user."""
        self._meeting.close()

    def _sum(self, flat: torch.Tensor) -> None:
        self._publish(flat)
        self._wait_for(self._operation)
        slots = self._slots(flat.numel(), flat.dtype)
        if self._num_nodes == 2:
            torch.add(slots[0], slots[1], out=flat)
        else:
            torch.sum(slots, dim=0, out=flat)

    def _slots(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """All followers' slots for the current operation, as [N, numel]."""
        area = self._operation % 2
        key = (area, numel, dtype)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._areas[area].view(dtype)[:, :numel]
        return view

    def _publish(self, flat: torch.Tensor) -> None:
        """Begin the next operation: write this follower's slot and tell the others."""
        self._raise_if_aborted()
        self._wait_for(self._operation)
        self._operation += 1
        self._slots(flat.numel(), flat.dtype)[self._rank].copy_(flat)
        index = self._counter_indices[self._rank]
        self._counters[index] = self._operation
        futex.wake_all(self._counters_address + index * _COUNTER_BYTES)

    def _wait_for(self, operation: int) -> None:
        """Wait until every follower has published `operation`."""
        for index in self._counter_indices:
            if self._counters[index] < operation:
                self._wait_for_one(index, operation)

    def _wait_for_one(self, index: int, operation: int) -> None:
        counters, started = self._counters, time.perf_counter()
        try:
            while counters[index] < operation and time.perf_counter() - started < _SPIN_S:
                pass
            while (value := counters[index]) < operation:
                self._raise_if_over(started, index, operation)
                address = self._counters_address + index * _COUNTER_BYTES
                futex.wait_while(address, value, timeout_s=_CHECK_S)
        finally:
            self.wait_s += time.perf_counter() - started

    def _raise_if_over(self, started: float, index: int, operation: int) -> None:
        """Raise if the awaited counter will not move any more, or has not for too long."""
        self._raise_if_aborted()
        lost = self._meeting.lost_peer()
        if lost is not None and self._counters[index] < operation:
            raise CollectiveAborted(f"follower {lost} left the group")
        if time.perf_counter() - started > self._deadline_s:
            rank = index // (_CACHE_LINE_BYTES // _COUNTER_BYTES)
            raise CollectiveAborted(
                f"follower {rank} did not come to a collective within {self._deadline_s:g} s"
            )

    def _raise_if_aborted(self) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted("the collective was aborted on this follower")


def _memory_file(size_bytes: int) -> int:
    """Descriptor of a file in memory that no name leads to."""
    descriptor = os.memfd_create("rufus-serve-collectives", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size_bytes)
    return descriptor
