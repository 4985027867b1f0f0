"""`Communicator`: how followers sum and gather tensors, and which implementation a group uses."""

import platform
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from rufus_serve.errors import ConfigError
from rufus_serve.runtime.base import GroupSpec


class Communicator(Protocol):
    """The collectives of one epoch; one thread calls it, every follower in the same order.

    All methods raise `CollectiveAborted` once the abort event given at construction is set, a
    peer is gone, or the deadline has passed. Then, as at the end, the owner calls `close`,
    by which the peers learn of it too.
    """

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for peers so far."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of the followers' contiguous `tensor`s, the same bits on each; in place."""

    def gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor] | None:
        """On node rank 0 the followers' `tensor`s [R, widths[rank]] by rank, else None."""

    def close(self) -> None:
        """Leave the group; never waits, may be called twice."""


class SingleCommunicator:
    """A group of one."""

    wait_s = 0.0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` itself."""
        return tensor

    def gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor]:
        """`tensor` alone."""
        assert list(widths) == [tensor.shape[1]]
        return [tensor]

    def close(self) -> None:
        """Nothing to leave."""


def has_ordered_memory() -> bool:
    """Whether the shared-memory collectives work here.

    They rely on other cores seeing stores in program order, which x86-64 guarantees and Arm
    does not, and on Linux's anonymous memory files.
    """
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def choose_kind(wanted: str, *, num_nodes: int, same_host: bool) -> str:
    """`single`, `shared_memory` or `sockets` for a group, from the setting `cpu.collective`.

    Raises:
        ConfigError: `shared_memory` is wanted where it cannot work.
    """
    if num_nodes == 1:
        return "single"
    if wanted == "auto":
        return "shared_memory" if same_host and has_ordered_memory() else "sockets"
    if wanted == "shared_memory" and not (same_host and has_ordered_memory()):
        raise ConfigError(
            f"cpu.collective: shared_memory needs all followers on one Linux x86-64 host, but "
            f"same_host is {same_host} on {sys.platform} {platform.machine()}; use auto or sockets"
        )
    return wanted


def connect(
    wanted: str, group: GroupSpec, *, aborted: threading.Event, deadline_s: float
) -> Communicator:
    """Meet the followers of `group`.

    Raises:
        CollectiveAborted: not all came within `deadline_s`, or `aborted` was set.
        ConfigError: `wanted` cannot work here.
    """
    kind = choose_kind(wanted, num_nodes=group.num_nodes, same_host=group.same_host)
    if kind == "single":
        return SingleCommunicator()
    if kind == "shared_memory":
        from rufus_serve.runtime.cpu.shared_memory import SharedMemoryCommunicator

        return SharedMemoryCommunicator(group, aborted=aborted, deadline_s=deadline_s)
    from rufus_serve.runtime.cpu.sockets import SocketCommunicator

    return SocketCommunicator(group, aborted=aborted, deadline_s=deadline_s)
