"""Runs the scheduler's steps on the followers, one after another, on a thread of its own.

The thread owns the step channel, the batch state and the sampler. A step has two halves, as
vLLM's engine asks for it: `execute` brings the logits, `sample` the tokens. Both are queued,
so with asynchronous scheduling the engine plans the next step meanwhile.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rufus_serve.channel.base import FollowerGone, LeaderChannel
from rufus_serve.errors import HandshakeRefused
from rufus_serve.leader import vllm_compat
from rufus_serve.leader.batch_state import BatchState
from rufus_serve.leader.epoch_gate import EpochGate
from rufus_serve.leader.group_link import Progress
from rufus_serve.leader.sampling import TokenSampler
from rufus_serve.leader.step_builder import PlannedStep, Row, StepBuilder
from rufus_serve.leader.step_deadline import StepDeadline
from rufus_serve.protocol.messages import GroupReady, StepReply

_log = logging.getLogger(__name__)
_HANDSHAKE_S = 15.0

Answer = tuple[PlannedStep, StepReply]
Suspect = Callable[[int, int, str], None]
"""Called with (epoch, node_rank, reason) when a follower is found lost; any thread."""


class GroupSteps:
    """Sends planned steps to the followers and gathers replies; step thread only."""

    def __init__(
        self,
        channel: LeaderChannel,
        gate: EpochGate,
        *,
        builder: StepBuilder,
        progress: Progress,
        deadline: StepDeadline,
        suspect: Suspect,
    ) -> None:
        self._channel = channel
        self._gate = gate
        self._builder = builder
        self._progress = progress
        self._deadline = deadline
        self._suspect = suspect
        self._next_step_id = 0
        self.pace = progress.pace

    def connect(self, ready: GroupReady) -> bool:
        """Shake hands with the followers of an epoch; steps may run then."""
        try:
            self._channel.connect(ready.epoch, ready.endpoints, deadline_s=_HANDSHAKE_S)
        except FollowerGone as gone:
            self._lose(ready.epoch, gone.node_rank, gone.reason)
            return False
        except HandshakeRefused as refused:
            self._lose(ready.epoch, -1, str(refused))
            return False
        self._next_step_id = 0
        self._progress.epoch = ready.epoch
        return self._gate.open(ready.epoch)

    def run(
        self, rows: Sequence[Row], epoch: int, *, num_candidates: int = 0
    ) -> list[Answer] | None:
        """The answers to all steps that `rows` take; None if the group was lost meanwhile."""
        planned = self._builder.build(
            rows, epoch=epoch, first_step_id=self._next_step_id, num_candidates=num_candidates
        )
        self._next_step_id += len(planned)
        try:
            for step in planned:
                self._channel.broadcast(step.request)
                self._progress.begin(step.request.step_id)
            return [(step, self._gather(step)) for step in planned]
        except FollowerGone as gone:
            self._lose(epoch, gone.node_rank, gone.reason)
            return None

    def _gather(self, step: PlannedStep) -> StepReply:
        request = step.request
        started = time.monotonic()
        deadline_s = self._deadline.seconds_for(request)
        replies = self._channel.gather(request.step_id, deadline_s=deadline_s)
        self._deadline.observe(request, time.monotonic() - started)
        self._progress.end(request.step_id)
        self.pace.observe(replies)
        return replies[0]

    def _lose(self, epoch: int, node_rank: int, reason: str) -> None:
        _log.warning("epoch %d is lost: follower %d: %s", epoch, node_rank, reason)
        self._gate.shut(epoch)
        self._progress.forget()
        self._suspect(epoch, node_rank, reason)


class StepLoop:
    """The queue in front of the step thread; called from EngineCore's main thread."""

    def __init__(
        self, steps: GroupSteps, gate: EpochGate, state: BatchState, sampler: TokenSampler
    ) -> None:
        self._steps = steps
        self._gate = gate
        self._state = state
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steps")
        self._pending: Any = None
        """The scheduler output awaiting `sample`, or the marker of a lost step."""

    def execute(self, scheduler_output: Any) -> "Future[Any]":
        """Queue a step; the future brings None once its logits are there, or a result."""
        return self._thread.submit(self._execute, scheduler_output)

    def sample(self, grammar_output: Any) -> "Future[Any]":
        """Queue the sampling of the step executed last."""
        return self._thread.submit(self._sample, grammar_output)

    def submit(self, call: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Queue something else for the step thread."""
        return self._thread.submit(call, *args)

    def close(self) -> None:
        """Drop what is queued."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _execute(self, output: Any) -> Any:
        rows = self._state.apply(output)
        if not rows:
            return vllm_compat.EMPTY_MODEL_RUNNER_OUTPUT
        answers = None
        if output.epoch is not None and output.epoch == self._gate.epoch:
            answers = self._steps.run(list(rows.values()), output.epoch)
        if answers is None:
            self._state.empty_batch()
            self._pending = vllm_compat.lost_step()
            return self._pending
        self._sampler.collect(answers, list(rows))
        self._pending = output
        return None

    def _sample(self, grammar_output: Any) -> Any:
        pending, self._pending = self._pending, None
        if isinstance(pending, vllm_compat.StepLost):
            return pending
        return self._sampler.sample(pending, grammar_output)
