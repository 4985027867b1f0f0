"""Runs the scheduler's steps on the followers, one after another, on a thread of its own.

The thread owns the group's steps, the batch state and the sampler. A step has two halves, as
vLLM's engine asks for it: `execute` brings the logits, `sample` the tokens. Both are queued,
so with asynchronous scheduling the engine plans the next step meanwhile.

A step that only goes on with the rows of the one before it is made ready while that one runs, by
the thread that brings it; once its tokens are drawn it is sent at once, before anything else.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.group_steps import Flight, GroupSteps
from rufus_serve.leader.engine.sampling import TokenSampler
from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_builder import Row

_WORTH_WAITING_S = 0.002


@dataclass(frozen=True)
class _Step:
    """A SchedulerOutput that the batch state has taken over, and its way to the followers."""

    output: Any
    flight: Flight


class StepLoop:
    """The queue in front of the step thread; called from EngineCore's main thread."""

    def __init__(
        self, steps: GroupSteps, engine: Engine, state: BatchState, sampler: TokenSampler
    ) -> None:
        self._steps = steps
        self._engine = engine
        self._state = state
        self._sampler = sampler
        self._trace = steps.trace
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="steps")
        self._lock = threading.Lock()
        """Held to use batch state and steps, but not while replies are awaited."""
        self._running: _Step | None = None
        """The step that followers compute, until its tokens are drawn."""
        self._next: _Step | None = None
        """The step behind it, if it was made ready ahead."""
        self._newest: Any = None
        """The scheduler output that was queued last; main thread only."""
        self._pending: Any = None
        """The scheduler output awaiting `sample`, or the marker of a lost step."""

    def execute(self, scheduler_output: Any) -> "Future[Any]":
        """Queue a step; the future brings None once its logits are there, or a result."""
        # Where the step thread makes a step ready itself, the next one comes too early as well, and
        # so on. It holds the lock for longer only while it waits for rows in full.
        if self._lock.acquire(timeout=_WORTH_WAITING_S):
            try:
                self._look_ahead(scheduler_output)
            finally:
                self._lock.release()
        self._newest = scheduler_output
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

    def _look_ahead(self, output: Any) -> None:
        """Make a step ready behind the running one, if that is the one queued before it."""
        running = self._running
        if (
            running is None
            or running.output is not self._newest
            or running.flight.epoch != output.epoch
            or self._engine.suspects.alone
        ):
            return
        with self._trace.span("ahead", track="scheduler"):
            rows = self._state.look_ahead(output)
            if rows is not None:
                self._next = _Step(output, self._steps.plan(rows, output.epoch))

    def _execute(self, output: Any) -> Any:
        with self._lock:
            step = self._made_ready(output)
            if step is None:
                rows = self._take_over(output)
                if not rows:
                    return vllm_compat.EMPTY_MODEL_RUNNER_OUTPUT
                if self._is_current(output):
                    step = self._plan(rows, output)
                    self._send(step)
        answers = None if step is None else self._steps.gather(step.flight)
        if step is None or answers is None:
            return self._lose(step)
        with self._lock:
            self._sampler.collect(answers, list(step.flight.rows))
        self._pending = output
        return None

    def _made_ready(self, output: Any) -> _Step | None:
        """The step of `output`, if it was made ready ahead; not sent if the one before was lost."""
        if self._running is not None and self._running.output is output:
            return self._running
        step, self._next = self._next, None
        return step

    def _take_over(self, output: Any) -> dict[str, Row]:
        """The rows of a step that was not made ready ahead."""
        with self._trace.span("take over"):
            rows = self._state.apply(output)
        alone = self._engine.suspects.alone
        return {
            req_id: replace(row, alone=True) if req_id in alone else row
            for req_id, row in rows.items()
        }

    def _plan(self, rows: dict[str, Row], output: Any) -> _Step:
        with self._trace.span("build"):
            return _Step(output, self._steps.plan(rows, output.epoch))

    def _send(self, step: _Step) -> None:
        """Send a step, unless its epoch is over."""
        if not self._is_current(step.output):
            return
        with self._trace.span("send"):
            if step is self._next:
                self._steps.send_ahead(step.flight, self._state.wants(step.flight.rows))
            else:
                self._steps.send(step.flight)
        self._running, self._next = step, None

    def _is_current(self, output: Any) -> bool:
        return output.epoch is not None and output.epoch == self._engine.gate.epoch

    def _lose(self, step: _Step | None) -> Any:
        """The marker of a lost step."""
        with self._lock:
            self._running = None
            self._state.empty_batch()
        self._steps.book()
        self._pending = lost = vllm_compat.lost_step()
        refusal = None if step is None else step.flight.refusal
        if refusal is not None:
            lost.refused, lost.reason = refusal.names, refusal.reason
        return lost

    def _sample(self, grammar_output: Any) -> Any:
        pending, self._pending = self._pending, None
        if isinstance(pending, vllm_compat.StepLost):
            return pending
        with self._lock:
            with self._trace.span("sample"):
                sampled = self._sampler.draw(pending, grammar_output, self._steps.look_up)
            self._running = None
            if sampled is None:
                self._state.empty_batch()
            elif self._next is not None:
                self._send(self._next)
            output = vllm_compat.lost_step() if sampled is None else self._sampler.output(sampled)
        self._steps.book()
        return output
