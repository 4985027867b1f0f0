"""Runs a leader's orders on a runtime and makes the replies."""

import logging
import time

import msgspec

from rufus_serve.errors import CollectiveAborted, RuntimeStepError
from rufus_serve.protocol.messages import (
    ChosenTokens,
    LogitsRequest,
    Phase,
    StepFailed,
    StepOrder,
    StepReply,
    StepRequest,
)
from rufus_serve.runtime.base import Runtime
from rufus_serve.runtime.candidates import whole_rows
from rufus_serve.runtime.logits import StepLogits

_log = logging.getLogger(__name__)


class Stepper:
    """One epoch's steps on one runtime; after a failed step every further one fails too."""

    def __init__(self, runtime: Runtime, *, epoch: int, node_rank: int) -> None:
        self._runtime = runtime
        self._epoch, self._node_rank = epoch, node_rank
        self._broken = ""
        self._kept: dict[int, StepLogits] = {}
        """Logits of steps that the leader may still ask for, by step."""

    def run(self, order: StepOrder) -> StepReply | StepFailed:
        """The answer to `order`."""
        if self._broken:
            return self._failure(order, f"an earlier step of the epoch failed: {self._broken}")
        started = time.monotonic()
        try:
            reply = self._look_up(order) if isinstance(order, LogitsRequest) else self._step(order)
        except CollectiveAborted as error:
            return self._failure(order, str(error))
        except Exception as error:  # noqa: BLE001 - the leader hears of it and decides
            _log.exception("step %d of epoch %d failed", order.step_id, order.epoch)
            return self._failure(order, f"{type(error).__name__}: {error}", refused=True)
        return msgspec.structs.replace(
            reply,
            began=started,
            compute_s=time.monotonic() - started,
            wait_s=self._runtime.last_wait_s,
        )

    def _step(self, step: StepRequest) -> StepReply:
        keep_since = step.step_id if step.keep_since < 0 else step.keep_since
        self._kept = {key: kept for key, kept in self._kept.items() if key >= keep_since}
        call = self._runtime.prefill if step.phase is Phase.PREFILL else self._runtime.decode
        logits = call(step)
        reply = self._empty_reply(step)
        if logits is None or not step.needs_logits:
            return reply
        if isinstance(logits, ChosenTokens):
            return msgspec.structs.replace(reply, chosen=logits)
        self._kept[step.step_id] = logits
        if step.prompt_wants is not None:
            scores = logits.prompt_scores(step.prompt_wants)
            reply = msgspec.structs.replace(reply, prompt_scores=scores)
        if not step.want_logits:
            return reply
        rows = whole_rows(step.wants, step.num_rows)
        return msgspec.structs.replace(
            reply,
            logits=logits.rows(rows) if len(rows) else None,
            candidates=None if step.wants is None else logits.candidates(step.wants),
        )

    def _look_up(self, request: LogitsRequest) -> StepReply:
        logits = self._kept.get(request.of_step_id)
        if logits is None:
            raise RuntimeStepError(f"the logits of step {request.of_step_id} are not kept any more")
        return msgspec.structs.replace(self._empty_reply(request), logits=logits.rows(request.rows))

    def _empty_reply(self, order: StepOrder) -> StepReply:
        return StepReply(
            step_id=order.step_id, epoch=order.epoch, node_rank=self._node_rank, compute_s=0.0
        )

    def _failure(self, order: StepOrder, error: str, *, refused: bool = False) -> StepFailed:
        self._broken = self._broken or error
        return StepFailed(
            step_id=order.step_id,
            epoch=order.epoch,
            node_rank=self._node_rank,
            error=error,
            refused=refused,
        )
