"""Runs step requests on a runtime and makes the replies."""

import logging
import time

import msgspec
import numpy as np

from rufus_serve.errors import CollectiveAborted
from rufus_serve.protocol.messages import Phase, StepFailed, StepReply, StepRequest
from rufus_serve.runtime.base import Runtime

_log = logging.getLogger(__name__)


class Stepper:
    """One epoch's steps on one runtime; after a failed step every further one fails too."""

    def __init__(self, runtime: Runtime, *, epoch: int, node_rank: int) -> None:
        self._runtime = runtime
        self._epoch, self._node_rank = epoch, node_rank
        self._broken = ""

    def run(self, step: StepRequest) -> StepReply | StepFailed:
        """The answer to `step`."""
        if self._broken:
            return self._failure(step, f"an earlier step of the epoch failed: {self._broken}")
        started = time.monotonic()
        try:
            call = self._runtime.prefill if step.phase is Phase.PREFILL else self._runtime.decode
            logits = call(step)
        except CollectiveAborted as error:
            return self._failure(step, str(error))
        except Exception as error:  # noqa: BLE001 - the leader hears of it and decides
            _log.exception("step %d of epoch %d failed", step.step_id, step.epoch)
            return self._failure(step, f"{type(error).__name__}: {error}")
        return self._reply(step, logits, time.monotonic() - started)

    def _failure(self, step: StepRequest, error: str) -> StepFailed:
        self._broken = self._broken or error
        return StepFailed(
            step_id=step.step_id, epoch=step.epoch, node_rank=self._node_rank, error=error
        )

    def _reply(self, step: StepRequest, logits: np.ndarray | None, spent_s: float) -> StepReply:
        reply = StepReply(
            step_id=step.step_id,
            epoch=step.epoch,
            node_rank=self._node_rank,
            compute_s=spent_s,
            wait_s=self._runtime.last_wait_s,
        )
        if logits is None or not step.want_logits:
            return reply
        if not step.num_candidates:
            return msgspec.structs.replace(reply, logits=logits)
        values, ids, normalizer = best_candidates(logits, step.num_candidates)
        return msgspec.structs.replace(
            reply, top_values=values, top_ids=ids, log_normalizer=normalizer
        )


def best_candidates(
    logits: np.ndarray, num_candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K best of each row of `logits` [R, V], falling, and each row's logsumexp.

    Returns:
        values [R, K] float32, token ids [R, K] int32, normalizer [R] float32. Equal values come
        in the order of their ids, as argmax would choose.
    """
    num_candidates = min(num_candidates, logits.shape[1])
    ids = np.argpartition(-logits, num_candidates - 1, axis=1)[:, :num_candidates]
    _prefer_low_ids(ids, logits)
    ids.sort(axis=1)
    values = np.take_along_axis(logits, ids, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    values, ids = np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)
    peak = values[:, :1]
    normalizer = np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]
    return values, ids.astype(np.int32), normalizer.astype(np.float32)


def _prefer_low_ids(ids: np.ndarray, logits: np.ndarray) -> None:
    """Of tokens as good as the last candidate, take those of the lowest ids, in place."""
    values = np.take_along_axis(logits, ids, axis=1)
    last = values.min(axis=1, keepdims=True)
    tied = (logits == last).sum(axis=1) > (values == last).sum(axis=1)
    for row in np.flatnonzero(tied):
        better = np.flatnonzero(logits[row] > last[row])
        equal = np.flatnonzero(logits[row] == last[row])
        ids[row] = np.concatenate((better, equal[: ids.shape[1] - better.size]))
