"""Runs the scheduler's steps on the followers, one after another, on a thread of its own.

The thread owns the group's steps, the batch state and the sampler. A step has two halves, as
vLLM's engine asks for it: `execute` brings the logits, `sample` the tokens. Both are queued,
so with asynchronous scheduling the engine plans the next step meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.group_steps import GroupSteps
from rufus_serve.leader.engine.sampling import TokenSampler
from rufus_serve.leader.engine.shared import Engine


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
        with self._trace.span("take over"):
            rows = self._state.apply(output)
        if not rows:
            return vllm_compat.EMPTY_MODEL_RUNNER_OUTPUT
        answers, refusal = None, None
        if output.epoch is not None and output.epoch == self._engine.gate.epoch:
            alone = self._engine.suspects.alone
            self._steps.tally.running = list(rows)
            planned = [
                replace(row, alone=True) if req_id in alone else row for req_id, row in rows.items()
            ]
            answers, refusal = self._steps.run(planned, output.epoch), self._steps.refusal
        if answers is None:
            self._state.empty_batch()
            self._pending = lost = vllm_compat.lost_step()
            if refusal is not None:
                req_ids = list(rows)
                lost.refused = tuple(req_ids[row] for row in refusal.rows)
                lost.reason = refusal.reason
            return self._pending
        self._sampler.collect(answers, list(rows))
        self._pending = output
        return None

    def _sample(self, grammar_output: Any) -> Any:
        pending, self._pending = self._pending, None
        if isinstance(pending, vllm_compat.StepLost):
            return pending
        with self._trace.span("sample"):
            output = self._sampler.sample(pending, grammar_output, self._steps.look_up)
        if output is None:
            self._state.empty_batch()
            return vllm_compat.lost_step()
        return output
