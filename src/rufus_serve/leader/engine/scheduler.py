"""vLLM's scheduler, taught that a group of followers may go and come back.

While there is no group nothing is scheduled, but requests are added and aborted as ever. When
a step is lost, every running request is preempted with its in-flight tokens dropped, and is
prefilled again from prompt and delivered tokens once the next group is there.

A request may also enter with tokens that another engine delivered: it goes on after them.
"""

import logging
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from rufus_serve.leader.delivered import take_delivered
from rufus_serve.leader.engine import vllm_compat

_log = logging.getLogger(__name__)
_IDLE_WAIT_S = 0.01


class _Recovering:
    """Mixin over vLLM's schedulers; EngineCore's main thread calls it.

    Outputs come back in scheduling order. So a step of the epoch in force may be delivered
    until the first lost one appears, and everything after that is lost as well.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine = vllm_compat.engine_of(self.vllm_config)  # type: ignore[attr-defined]
        self._engine.request_counts = self.get_request_counts  # type: ignore[attr-defined]
        grammars = self.structured_output_manager  # type: ignore[attr-defined]
        vllm_compat.calm_grammar_compilation(grammars)
        self._rejecting = vllm_compat.watch_grammars(grammars)
        self._epoch: int | None = None
        self._num_in_flight = 0
        self._max_active: int = self.max_num_active_reqs
        self._max_tokens: int = self.max_num_scheduled_tokens

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """A step of the open epoch, or one without tokens while there is none."""
        runnable = self._enter_epoch()
        state = self._pause_state  # type: ignore[has-type]
        if not runnable:
            self._pause_state = PauseState.PAUSED_ALL
        self._limit_prefills()
        try:
            with self._engine.trace.span("schedule", track="scheduler"):
                output = super().schedule(throttle_prefills)  # type: ignore[misc]
        finally:
            self._pause_state = state
        output.epoch = self._epoch
        vllm_compat.tell_delivered(output, self.requests)  # type: ignore[attr-defined]
        self._num_in_flight += output.total_num_scheduled_tokens > 0
        return output

    def add_request(self, request: Any) -> None:
        """As vLLM's; one that another engine began goes before those that wait here."""
        delivered = take_delivered(request.sampling_params)
        if delivered:
            vllm_compat.enter_delivered(request, delivered)
        super().add_request(request)  # type: ignore[misc]
        if delivered:
            request.events.clear()  # It was queued once already: queue times would be negative.
            self.waiting.remove_request(request)  # type: ignore[attr-defined]
            self.waiting.prepend_request(request)  # type: ignore[attr-defined]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As vLLM's; a lost step delivers nothing and preempts what was running."""
        self._num_in_flight -= scheduler_output.total_num_scheduled_tokens > 0
        suspects = self._engine.suspects
        suspects.forget(scheduler_output.finished_req_ids)
        if isinstance(model_runner_output, vllm_compat.StepLost):
            self._fail_guilty(model_runner_output)
            if scheduler_output.epoch == self._epoch:
                self._void_cache()
            model_runner_output = vllm_compat.EMPTY_MODEL_RUNNER_OUTPUT
        output = model_runner_output
        vllm_compat.tell_drafts(scheduler_output, output)
        for req_id, token_ids in zip(output.req_ids, output.sampled_token_ids, strict=False):
            if token_ids:
                suspects.delivered(req_id)
        self._rejecting.clear()
        with self._engine.trace.span("output", track="scheduler"):
            outputs = super().update_from_output(  # type: ignore[misc]
                scheduler_output, model_runner_output
            )
        if self._rejecting:
            vllm_compat.blame_parameters(outputs, self._rejecting)
        return outputs

    def make_spec_decoding_stats(self, stats: Any, *counts: Any, **named: Any) -> Any:
        """As vLLM's; a row that had no drafts is no attempt."""
        req_id, places = named["request_id"], named["num_draft_tokens"]
        if named["num_invalid_spec_tokens"].get(req_id, 0) == places:
            return stats
        return super().make_spec_decoding_stats(stats, *counts, **named)  # type: ignore[misc]

    def get_grammar_bitmask(self, scheduler_output: Any) -> Any:
        """As vLLM's; what it returns is not overwritten later."""
        return vllm_compat.own_bitmask(super().get_grammar_bitmask(scheduler_output))  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """As vLLM's; a grammar that is ready takes in what was delivered elsewhere."""
        compiling = vllm_compat.awaits_grammar(request)
        ready: bool = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        if ready and compiling and request.num_output_tokens:
            manager = self.structured_output_manager  # type: ignore[attr-defined]
            if not manager.accept_tokens(request, list(request.output_token_ids)):
                errors = self.grammar_compile_error_reqs  # type: ignore[attr-defined]
                errors[request.request_id] = vllm_compat.grammar_error()
                return False
        return ready

    def _fail_guilty(self, lost: vllm_compat.StepLost) -> None:
        """End the requests that this refused step is not the first of."""
        for req_id in self._engine.suspects.refused(lost.refused):
            _log.error("request %s is failed: %s", req_id, lost.reason)
            vllm_compat.fail_request(self, req_id, f"the model's runtime failed: {lost.reason}")

    def _enter_epoch(self) -> bool:
        """Follow the gate; False while no step may run."""
        gate = self._engine.gate
        epoch = gate.epoch
        if epoch is not None and epoch == self._epoch:
            return True
        if self._num_in_flight:
            return False
        if self._epoch is not None:
            self._void_cache()
        self._epoch = gate.wait(_IDLE_WAIT_S)
        return self._epoch is not None

    def _void_cache(self) -> None:
        """No KV block holds anything any more; preempt all and forget cached prefixes."""
        self.reset_prefix_cache(reset_running_requests=True)  # type: ignore[attr-defined]
        self._epoch = None

    def _limit_prefills(self) -> None:
        """Keep prompts from holding up running requests longer than configured."""
        engine, requests = self._engine, self.running  # type: ignore[attr-defined]
        self.max_num_scheduled_tokens = min(self._max_tokens, engine.token_limit(requests))
        self.max_num_active_reqs = min(self._max_active, engine.request_limit(requests))


class RecoveringScheduler(_Recovering, Scheduler):  # type: ignore[misc]
    """One step at a time."""


class RecoveringAsyncScheduler(_Recovering, AsyncScheduler):  # type: ignore[misc]
    """Schedules a step while the one before it runs."""
