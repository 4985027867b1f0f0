"""What the leader adds to a decode step, beside vLLM's own sampler on the same logits.

    python benchmarks/leader_overhead.py [--rows 1 8 32 64] [--followers 1 2] [--write]

Null followers, processes of their own, answer `--delay-ms` after a step came, with logits made
beforehand and written within that time. So a step's period less the delay is what leader, channel
and reply add; what rank 0 takes of that to find candidates, or to copy rows, is told apart. The
step loop is the product's, two steps ahead as vLLM's engine has it, with vLLM's batch; vLLM's
scheduler and front end are left out. The gap lies between a step's last reply and the moment when
the next is with the sockets.

Modes, round by round: `candidates`; `rows in full`, drawn by us; `vllm`, rows in full drawn by
vLLM's sampler. `--no-memory` sends large replies by socket. `--write` keeps record and table.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import time
import warnings
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from marks import keep
from rufus_serve.protocol.messages import Phase, StepRequest

CONTEXT, BLOCK_SIZE = 200, 32
GREEDY = {"temperature": 0.0}
TEMPERATURE, MASS_OF_TEN = 0.8, 0.87
RANDOM = {"temperature": TEMPERATURE}
KINDS = {
    "greedy": [GREEDY],
    "half top_p 0.9": [GREEDY, RANDOM | {"top_p": 0.9}],
    "unfiltered": [RANDOM],
    "penalties": [RANDOM | {"presence_penalty": 0.5, "repetition_penalty": 1.2}],
    "schema": [GREEDY],
    "logprobs 5": [GREEDY | {"logprobs": 5}],
}
"""Sampling parameters that rows take turns in."""
MODES = ["candidates", "rows in full", "vllm"]
RECORD = Path(__file__).parent / "results" / "leader_overhead.json"
MARKS = ("<!-- leader: begin -->", "<!-- leader: end -->")


class NullRuntime:
    """Computes for a fixed time."""

    last_wait_s = 0.0

    def __init__(self, vocab_size: int, rows: int, *, delay_s: float, node_rank: int) -> None:
        random = np.random.default_rng(0)
        self._logits = (random.standard_normal((2 * rows, vocab_size)) * 3).astype(np.float32)
        for place, row in enumerate(self._logits):
            # Ten tokens, others in each row, have as much of its mass as in the demo model's texts.
            weights = 0.6 ** np.arange(10)
            rest = np.exp(row / TEMPERATURE).sum()
            weights *= rest * MASS_OF_TEN / (1 - MASS_OF_TEN) / weights.sum()
            row[10 * place : 10 * place + 10] = TEMPERATURE * np.log(weights)
        self._written = self._logits[:rows].copy()
        self._shifts = itertools.cycle(range(rows + 1))
        self._delay_s, self._write_s = delay_s, delay_s / 2
        self._is_first = node_rank == 0

    def decode(self, step):
        """Logits are written at the end of the time, as a device does."""
        ends = time.perf_counter() + self._delay_s
        time.sleep(max(0.0, self._delay_s - 1.5 * self._write_s))
        writes = time.perf_counter()
        logits = self.prefill(step)
        self._write_s = time.perf_counter() - writes
        while time.perf_counter() < ends:
            pass
        return logits

    def prefill(self, step):
        from rufus_serve.runtime.logits import WholeLogits

        if not self._is_first:
            return WholeLogits(None)
        first = next(self._shifts)
        rows = self._written[: step.num_rows]
        np.copyto(rows, self._logits[first : first + step.num_rows])
        return WholeLogits(rows)


def follow(arguments, token: str, node_rank: int, announced) -> None:
    from rufus_serve.channel.base import HelloInfo
    from rufus_serve.channel.keys import GroupKeys
    from rufus_serve.channel.zeromq import ZmqFollowerChannel
    from rufus_serve.follower.stepper import Stepper
    from rufus_serve.runtime.candidates import search_by

    search_by(os.cpu_count() or 1)
    runtime = NullRuntime(
        arguments.vocab,
        max(arguments.rows) if node_rank == 0 else 1,
        delay_s=arguments.delay_ms / 1e3,
        node_rank=node_rank,
    )
    channel = ZmqFollowerChannel(
        HelloInfo(config_hash="benchmark", sender_id="null"), GroupKeys.from_token(token),
        node_rank=node_rank, host="localhost", address="127.0.0.1", port=0,
        share_memory=not arguments.no_memory,
    )  # fmt: skip
    channel.begin(1)
    announced.put((node_rank, channel.endpoint.endpoint))
    stepper = Stepper(runtime, epoch=1, node_rank=node_rank)
    while True:
        step = channel.receive(timeout_s=60.0)
        if step is not None:
            channel.reply(stepper.run(step))


def runtime_info(arguments, *, candidates: bool):
    from rufus_serve.protocol.messages import RuntimeInfo

    rows = max(arguments.rows)
    return RuntimeInfo(
        model_type="llama", num_layers=1, num_kv_heads=1, head_size=64,
        vocab_size=arguments.vocab, dtype="float32", block_size=BLOCK_SIZE,
        num_blocks=rows * 40 + 1, max_model_len=1024, prefill_buckets=(64,),
        decode_batch_buckets=(rows,), context_buckets=(1024,), candidates=candidates,
    )  # fmt: skip


def vllm_config(arguments):
    """As much of vLLM's configuration as batch and sampler read."""
    scheduler = SimpleNamespace(max_num_seqs=max(arguments.rows), max_num_batched_tokens=2048)
    model = SimpleNamespace(
        max_model_len=1024, logits_processors=None, logprobs_mode="raw_logprobs"
    )
    return SimpleNamespace(
        scheduler_config=scheduler, model_config=model, reasoning_config=None,
        speculative_config=None, num_speculative_tokens=0,
    )  # fmt: skip


class Watched:
    """A leader's channel, and what was seen of decodes and of the gaps between them."""

    def __init__(self, channel) -> None:
        self._channel = channel
        self._decode = self._answered = None
        self.gaps, self.search_s, self.reply_bytes = [], [], []

    def __getattr__(self, name: str):
        return getattr(self._channel, name)

    def broadcast(self, order) -> None:
        self._channel.broadcast(order)
        if not isinstance(order, StepRequest) or order.phase is not Phase.DECODE:
            return
        self._decode = order.step_id
        if self._answered is not None:
            self.gaps.append(time.perf_counter() - self._answered)
            self._answered = None

    def gather(self, step_id: int, *, deadline_s: float):
        replies = self._channel.gather(step_id, deadline_s=deadline_s)
        if step_id == self._decode:
            self._answered = time.perf_counter()
            self.search_s.append(replies[0].compute_s)
            self.reply_bytes.append(sum(map(size_of, replies)))
        return replies


class Engine:
    """Step loop, batch and sampler over a channel; outputs are made up instead of scheduled."""

    def __init__(self, arguments, steps, shared, mode: str) -> None:
        from rufus_serve.leader.engine.batch_state import BatchState
        from rufus_serve.leader.engine.sampling import TokenSampler
        from rufus_serve.leader.engine.step_loop import StepLoop

        info = runtime_info(arguments, candidates=mode == "candidates")
        config = vllm_config(arguments)
        state = BatchState(config, info=info)
        sampler = TokenSampler(config, state, vocab_size=info.vocab_size)
        if mode == "vllm":
            from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

            vllms = sampler._sampler  # noqa: SLF001 - the peer of this benchmark
            vllms.topk_topp_sampler = TopKTopPSampler("raw_logprobs")
        self.loop = StepLoop(steps, shared, state, sampler)
        self.vocab, self.computed, self.sampled = arguments.vocab, CONTEXT, deque()

    def admit(self, kind: str, rows: int) -> None:
        """Requests whose prompts are all computed but for the last token."""
        from vllm import SamplingParams

        blocks = CONTEXT * 5 // BLOCK_SIZE
        new = []
        for row in range(rows):
            fields = KINDS[kind][row % len(KINDS[kind])]
            params = SamplingParams(max_tokens=800, seed=row, **fields)
            params.update_from_generation_config({}, None)
            prompt = np.random.default_rng(row).integers(0, self.vocab, CONTEXT + 1).tolist()
            ids = list(range(1 + row * blocks, 1 + (row + 1) * blocks))
            new.append(SimpleNamespace(
                req_id=str(row), sampling_params=params, prompt_token_ids=prompt,
                block_ids=(ids,), num_computed_tokens=CONTEXT, prefill_token_ids=None,
            ))  # fmt: skip
        self.req_ids = [each.req_id for each in new]
        self.grammar = None
        if kind == "schema":
            mask = np.random.default_rng(0).integers(
                -(2**31), 2**31, (rows, -(-self.vocab // 32)), dtype=np.int64
            )
            self.grammar = SimpleNamespace(
                structured_output_request_ids=self.req_ids, grammar_bitmask=mask.astype(np.int32)
            )
            for each in new:
                each.sampling_params.structured_outputs = object()
        # One token is all that is left of each prompt: no prefills here, but for the first step.
        self.output = self._output(new, ())
        self.queue_step()
        self.queue_step()

    def _output(self, new, cached):
        cached_reqs = SimpleNamespace(
            req_ids=list(cached), resumed_req_ids=set(), all_token_ids={},
            num_computed_tokens=[self.computed] * len(cached), new_block_ids=[None] * len(cached),
        )  # fmt: skip
        return SimpleNamespace(
            scheduled_cached_reqs=cached_reqs, num_scheduled_tokens=dict.fromkeys(self.req_ids, 1),
            finished_req_ids=set(), scheduled_new_reqs=list(new), epoch=1,
            scheduled_spec_decode_tokens={},
        )  # fmt: skip

    def queue_step(self) -> None:
        self.loop.execute(self.output)
        self.sampled.append(self.loop.sample(self.grammar))
        self.computed += 1
        self.output = self._output((), self.req_ids)

    def step(self) -> None:
        """Await the older of two steps that are queued, and queue another."""
        self.sampled.popleft().result()
        self.queue_step()

    def close(self) -> None:
        """Await what is queued."""
        while self.sampled:
            self.sampled.popleft().result()
        self.loop.close()


def size_of(reply) -> int:
    found = 0 if reply.logits is None else reply.logits.nbytes
    if (each := reply.candidates) is not None:
        arrays = (each.logits, each.ids, each.log_totals, each.token_logits)
        found += sum(array.nbytes for array in arrays)
    return found


def measure(
    arguments, steps, shared, channel, mode: str, *, kind: str, rows: int
) -> dict[str, float]:
    engine = Engine(arguments, steps, shared, mode)
    engine.admit(kind, rows)
    channel.gaps.clear()
    channel.search_s.clear()
    channel.reply_bytes.clear()
    spent, cpu = [], []
    for _ in range(arguments.steps):
        began, burnt = time.perf_counter(), time.process_time()
        engine.step()
        spent.append(time.perf_counter() - began)
        cpu.append(time.process_time() - burnt)
    engine.close()
    keep = slice(len(spent) // 5, None)
    return {
        "mode": mode, "kind": kind, "rows": rows,
        "overhead_ms": round(1e3 * statistics.median(spent[keep]) - arguments.delay_ms, 2),
        "search_ms": round(
            1e3 * statistics.median(channel.search_s[keep]) - arguments.delay_ms, 2
        ),
        "gap_ms": round(1e3 * statistics.median(channel.gaps[keep]), 2),
        "cpu_ms": round(1e3 * statistics.median(cpu[keep]), 2),
        "reply_kb": round(statistics.median(channel.reply_bytes[keep]) / 1e3, 1),
    }  # fmt: skip


def group_steps(arguments, token: str, places):
    """The product's way to followers, connected, and its channel."""
    from rufus_serve.channel.base import HelloInfo
    from rufus_serve.channel.keys import GroupKeys
    from rufus_serve.channel.zeromq import ZmqLeaderChannel
    from rufus_serve.leader.engine.group_steps import GroupSteps
    from rufus_serve.leader.engine.shared import Engine as Shared
    from rufus_serve.leader.engine.step_builder import StepBuilder
    from rufus_serve.leader.engine.step_counter import StepCounter
    from rufus_serve.leader.engine.step_deadline import StepDeadline
    from rufus_serve.protocol.messages import GroupReady, StepEndpoint

    info = runtime_info(arguments, candidates=True)
    identity = HelloInfo(config_hash="benchmark", sender_id="benchmark")
    shared = Shared()
    channel = Watched(ZmqLeaderChannel(identity, GroupKeys.from_token(token)))
    steps = GroupSteps(
        channel, shared.gate,
        builder=StepBuilder.for_runtime(info), progress=StepCounter(shared),
        deadline=StepDeadline(60.0), tell_lost=print,
    )  # fmt: skip
    endpoints = tuple(
        StepEndpoint(node_rank=rank, host="localhost", endpoint=place) for rank, place in places
    )
    steps.connect(GroupReady(epoch=1, endpoints=endpoints, info=info))
    return steps, shared, channel


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--followers", type=int, nargs="+", default=[1])
    parser.add_argument("--delay-ms", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-memory", action="store_true", help="all replies by socket")
    parser.add_argument("--write", action="store_true", help="keep the record and its table")
    return parser.parse_args()


def table(found: list[dict]) -> str:
    lines = [
        "| followers | rows | kind | mode | overhead ms | of it rank 0's search | gap ms "
        "| engine's CPU ms | reply KB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = (
        "followers",
        "rows",
        "kind",
        "mode",
        "overhead_ms",
        "search_ms",
        "gap_ms",
        "cpu_ms",
        "reply_kb",
    )
    lines += ["| " + " | ".join(str(each[name]) for name in names) + " |" for each in found]
    return "\n".join(lines)


def run(arguments, followers: int):
    """Yields what is measured with so many null followers."""
    from rufus_serve.channel.keys import new_token

    token, announced = new_token(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(
            target=follow, args=(arguments, token, rank, announced), daemon=True
        )
        for rank in range(followers)
    ]
    for process in processes:
        process.start()
    steps, shared, channel = group_steps(
        arguments, token, sorted(announced.get() for _ in processes)
    )
    for rows, kind, mode in itertools.product(arguments.rows, arguments.kinds, arguments.modes):
        yield {"followers": followers} | measure(
            arguments, steps, shared, channel, mode, kind=kind, rows=rows
        )
    for process in processes:
        process.terminate()
        process.join()


def main() -> None:
    arguments = parse()
    os.environ |= {"VLLM_PLUGINS": "rufus_serve", "RUFUS_LEADER_SPEC": "unread"}
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    found = []
    for followers in arguments.followers:
        for each in run(arguments, followers):
            print(json.dumps(each), flush=True)
            found.append(each)
    if arguments.write:
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        record = {"date": date, "cores": os.cpu_count(), "arguments": vars(arguments),
                  "measured": found}  # fmt: skip
        title = f"{date}, {os.cpu_count()} cores, vocabulary {arguments.vocab}"
        keep(record, RECORD, f"{title}; a step takes {arguments.delay_ms:g} ms.\n\n{table(found)}",
             MARKS)  # fmt: skip


if __name__ == "__main__":
    main()
