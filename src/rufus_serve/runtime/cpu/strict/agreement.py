"""Every follower makes the same calls in the same order; here that is checked, not hoped for.

On a device, a node whose call differs answers from other tokens, or waits for ever.
"""

import hashlib

import torch

from rufus_serve.errors import RuntimeStepError
from rufus_serve.runtime.cpu.collectives import Communicator
from rufus_serve.runtime.cpu.strict.graphs import GraphCall

_PARTS = 4
_PART_BYTES = 6
"""Sums over followers stay within int64."""


class Agreement:
    """The calls of one epoch on one follower."""

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes
        self._num_calls = 0

    def check(self, call: GraphCall, communicator: Communicator) -> None:
        """Meet the other followers before a call.

        Raises:
            RuntimeStepError: another follower is at another call, or at it with other tensors.
            CollectiveAborted: a follower makes no call.
        """
        self._num_calls += 1
        own = self._digest(call)
        total = communicator.all_reduce(own.clone())
        if not torch.equal(total, own * self._num_nodes):
            raise RuntimeStepError(
                f"call {self._num_calls}, graph {call.graph.name}: the followers' calls differ; "
                "every follower must make the same calls in the same order"
            )

    def _digest(self, call: GraphCall) -> torch.Tensor:
        digest = hashlib.blake2b(
            f"{self._num_calls} {call.graph.name}".encode(), digest_size=_PARTS * _PART_BYTES
        )
        for name in sorted(call.tensors):
            digest.update(name.encode() + call.tensors[name].tobytes())
        parts = [
            int.from_bytes(digest.digest()[start : start + _PART_BYTES], "little")
            for start in range(0, _PARTS * _PART_BYTES, _PART_BYTES)
        ]
        return torch.tensor(parts, dtype=torch.int64)
