"""`GlooCommunicator`: collectives across hosts, over torch's Gloo process group."""

import datetime as dt
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo, TCPStore

from rufus_serve.errors import CollectiveAborted, ConfigError
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu.patience import Patience


class GlooCommunicator:
    """See `Communicator`. Owns a process group of its own, not torch's global one."""

    def __init__(self, group: GroupSpec, *, aborted: threading.Event, deadline_s: float) -> None:
        self._rank = group.node_rank
        self._patience = Patience(aborted, deadline_s=deadline_s)
        self._process_group = self._in_background(lambda: _form(group, deadline_s))
        self.all_reduce(torch.zeros(1))

    @property
    def wait_s(self) -> float:
        """Seconds spent in collectives so far; Gloo does not tell waiting from sending."""
        return self._patience.waited_s

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of the followers' contiguous `tensor`s; in place."""
        self._run(lambda group: group.allreduce([tensor]))
        return tensor

    def gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor] | None:
        """On node rank 0 the followers' `tensor`s [R, widths[rank]] by rank, else None."""
        # Gloo gathers equal shapes only.
        padded = tensor.new_zeros(tensor.shape[0], max(widths))
        padded[:, : tensor.shape[1]] = tensor
        parts = [torch.empty_like(padded) for _ in widths] if self._rank == 0 else []
        options = dist.GatherOptions()
        options.rootRank = 0
        self._run(lambda group: group.gather([parts] if parts else [], [padded], options))
        if not parts:
            return None
        return [part[:, :width] for part, width in zip(parts, widths, strict=True)]

    def close(self) -> None:
        """Leave the group; an operation still running is given up in the background."""
        process_group, self._process_group = self._process_group, None
        if process_group is not None:
            # Its destructor joins threads that a silent peer may keep busy.
            threading.Thread(target=process_group.abort, daemon=True).start()

    def _run(self, start: Callable[[Any], Any]) -> None:
        self._patience.raise_if_aborted()
        try:
            work = start(self._process_group)
            self._patience.wait(work.is_completed, check=_nothing)
            work.wait()
        except RuntimeError as error:
            raise CollectiveAborted(f"a Gloo collective failed: {error}") from error

    def _in_background(self, form: Callable[[], Any]) -> Any:
        """Run `form` in a thread that is abandoned if it does not end in time."""
        outcome: list[Any] = []

        def attempt() -> None:
            try:
                outcome.append(form())
            except (RuntimeError, OSError) as error:
                outcome.append(error)

        threading.Thread(target=attempt, daemon=True).start()
        self._patience.wait(lambda: bool(outcome), check=_nothing)
        if isinstance(outcome[0], Exception):
            raise CollectiveAborted(f"the Gloo group could not form: {outcome[0]}") from outcome[0]
        return outcome[0]


def _form(group: GroupSpec, deadline_s: float) -> Any:
    host, port = _address(group.rendezvous)
    timeout = dt.timedelta(seconds=deadline_s)
    store = TCPStore(host, port, group.num_nodes, is_master=group.node_rank == 0, timeout=timeout)
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # noqa: SLF001
    own_address = _address_towards(host, port)
    options._devices = [ProcessGroupGloo.create_device(hostname=own_address)]  # noqa: SLF001
    options._timeout = timeout  # noqa: SLF001
    return ProcessGroupGloo(store, group.node_rank, group.num_nodes, options)


def _address(rendezvous: str) -> tuple[str, int]:
    parts = urlsplit(rendezvous)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ConfigError(f"Gloo needs a rendezvous tcp://HOST:PORT, got {rendezvous!r}")
    return parts.hostname, parts.port


def _address_towards(host: str, port: int) -> str:
    """This host's address on the way to `host`; nothing is sent."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _nothing() -> None:
    """No further check: Gloo itself notices closed connections."""
