import msgspec
import numpy as np
import pytest

from rufus_serve.leader.engine.step_builder import Row, StepBuilder, Want
from rufus_serve.leader.engine.step_tally import Answered, StepTally
from rufus_serve.leader.engine.step_trace import StepTrace
from rufus_serve.leader.step_counts import STEP_BOUNDS_S, StepCounts
from rufus_serve.protocol.messages import Candidates, RuntimeInfo, StepReply

INFO = RuntimeInfo(
    model_type="llama", num_layers=1, num_kv_heads=1, head_size=64, vocab_size=100,
    dtype="float32", block_size=16, num_blocks=8, max_model_len=128, prefill_buckets=(32, 64),
    decode_batch_buckets=(1, 4), context_buckets=(128,),
)  # fmt: skip


def reply(rank: int) -> StepReply:
    best = Candidates(
        logits=np.zeros(5, np.float32), ids=np.zeros(5, np.int32),
        log_totals=np.zeros((1, 2)), token_logits=np.zeros(0, np.float32),
    )  # fmt: skip
    candidates = best if rank == 0 else None
    return StepReply(step_id=0, epoch=1, node_rank=rank, compute_s=0.0, candidates=candidates)


def counted(tally: StepTally) -> StepCounts:
    return msgspec.convert(tally.report(), StepCounts)


def test_steps_are_counted_by_phase_time_and_fill() -> None:
    tally = StepTally(StepTrace())
    tally.know(INFO)
    prompt = Row(np.arange(40, dtype=np.int32), 0, 40, [1, 2, 3], True)
    running = Row(np.arange(9, dtype=np.int32), 8, 1, [1], False, want=Want(5))
    build = StepBuilder.for_runtime(INFO).build
    decode, prefill = build([prompt, running, running], epoch=1, first_step_id=0)
    tally.step(Answered(decode.request, [reply(0), reply(1)], 5.0, 5.0, 5.0125))
    tally.step(Answered(decode.request, [reply(0), reply(1)], 0.0, 0.0, 99.0))
    tally.step(Answered(prefill.request, [reply(0)], 1.0, 1.0, 1.001))
    found = counted(tally)
    decodes = found.steps["decode"].buckets
    assert decodes[STEP_BOUNDS_S.index(0.02)] == decodes[-1] == 1
    assert found.steps["decode"].sum_s == pytest.approx(99.0125)
    assert sum(found.steps["prefill"].buckets) == 1
    assert (found.filled["decode"].used, found.filled["decode"].computed) == (4, 8)
    assert (found.filled["prefill"].used, found.filled["prefill"].computed) == (40, 64)
    # 5 logits, 5 ids and two float64 of node rank 0, three times.
    assert found.received_bytes == 3 * (20 + 20 + 16)
    # Two decodes and the prompt's 40 tokens, and what goes with them.
    assert found.sent_bytes > 40 * 4


def test_parts_and_rows_fetched_in_full_are_told() -> None:
    trace = StepTrace()
    tally = StepTally(trace)
    for _ in range(2):
        with trace.span("build"):
            pass
    tally.fetched(3)
    tally.saw_stale(2)
    found = counted(tally)
    assert (found.rows_in_full, found.stale_replies) == (3, 2)
    assert set(found.parts_s) == {"build"}
    assert found.parts_s["build"] > 0


def test_the_newest_step_of_a_phase_is_kept_for_traces_once() -> None:
    tally = StepTally(StepTrace())
    running = Row(np.arange(9, dtype=np.int32), 8, 1, [1], False, want=Want(5))
    (decode,) = StepBuilder.for_runtime(INFO).build([running] * 2, epoch=3, first_step_id=7)
    for sent in (1.0, 2.0):
        answer = msgspec.structs.replace(reply(1), compute_s=0.06, wait_s=0.01)
        tally.step(Answered(decode.request, [answer], sent, sent, sent + 0.1, ("a", "b")))
    (sample,) = counted(tally).samples
    assert (sample.step_id, sample.epoch, sample.phase) == (7, 3, "decode")
    assert (sample.sent, sample.requests) == (2.0, ("a", "b"))
    (part,) = sample.followers
    assert (part.node_rank, part.compute_s, part.wait_s) == (1, 0.06, 0.01)
    assert part.began == pytest.approx(2.02)
    assert counted(tally).samples == []
