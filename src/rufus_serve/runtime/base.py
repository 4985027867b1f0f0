"""`Runtime`: the contract between a follower and what it computes on."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from rufus_serve.protocol.messages import ChosenTokens, RuntimeInfo, StepRequest
from rufus_serve.runtime.logits import StepLogits

Progress = Callable[[int, int, str], None]
"""Called with (done, total, detail) while something long runs; any thread."""


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The group that a runtime's collectives span, for one epoch."""

    epoch: int
    node_rank: int
    num_nodes: int
    rendezvous: str
    """Shared-memory name stem on one host (`same_host`), else tcp://HOST:PORT/SECRET."""
    same_host: bool
    num_blocks: int
    """KV blocks to hold; at most `RuntimeInfo.num_blocks` of every follower."""


class Runtime(Protocol):
    """One follower's shard of the model. One thread makes all calls, but for `abort`.

    Life cycle: `load`, `join`, `warm_up`, then steps; after a loss `abort`, `join` again with
    the weights kept and the KV cache void, and steps of the next epoch.
    """

    last_wait_s: float
    """Seconds of the last step spent waiting for peers; 0 where the runtime cannot tell."""

    def load(self, progress: Progress) -> RuntimeInfo:
        """Read this node's shard of the weights.

        Raises:
            ModelError: the checkpoint cannot be served; another try would fail the same way.
        """

    def join(self, group: GroupSpec) -> None:
        """Build collectives for the epoch and an empty KV cache of `group.num_blocks`."""

    def warm_up(self, progress: Progress) -> None:
        """Run every bucket once; all followers call it together."""

    def prefill(self, step: StepRequest) -> StepLogits | ChosenTokens | None:
        """Run a prefill; logits of each row's last position, None unless the step needs any.

        With `RuntimeInfo.chosen_tokens` the tokens instead, on node rank 0.

        Raises:
            RuntimeStepError: the step has a shape that was not compiled.
            CollectiveAborted: a peer is gone, or `abort` was called.
        """

    def decode(self, step: StepRequest) -> StepLogits | ChosenTokens | None:
        """Run a decode; logits of R rows, or tokens as `prefill`. Raises as that.

        All keys and values are stored before any row attends, so that rows which continue one
        another's sequence see each other.
        """

    def abort(self) -> None:
        """Make a running or the next collective raise `CollectiveAborted`; any thread."""

    def close(self) -> None:
        """Free everything; may be called twice."""
