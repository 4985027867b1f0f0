"""Round trip of a step over the ZeroMQ channel, beside a raw ZeroMQ echo in the same run.

    python benchmarks/channel_latency.py [--followers 2] [--rounds 2000]

Each follower is a process of its own on this host. The peers send as many bytes, in one frame,
to as many echo processes and wait for all: what ZeroMQ alone costs, plain and with CurveZMQ.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import zmq

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.keys import GroupKeys, new_token
from rufus_serve.channel.zeromq import ZmqFollowerChannel, ZmqLeaderChannel
from rufus_serve.protocol.messages import (
    Candidates,
    Phase,
    RowWants,
    StepEndpoint,
    StepReply,
    StepRequest,
)

ROWS, VOCABULARY, CANDIDATES, BLOCKS = 8, 49152, 256, 64
WANTS = RowWants(
    num_candidates=np.full(ROWS, CANDIDATES, np.int32),
    temperatures=np.ones((ROWS, 2), np.float32),
    num_token_ids=np.zeros(ROWS, np.int32),
    token_ids=np.zeros(0, np.int32),
)
CASES = (
    ("no logits", {"want_logits": False}, 1),
    (f"{ROWS} x {CANDIDATES} candidates", {"wants": WANTS}, 1),
    (f"{ROWS} x {VOCABULARY} logits", {}, 10),
)
"""Name, what the step asks for, and by what to divide the rounds."""
SMALL_BYTES = 64
REPLY_BYTES = (SMALL_BYTES, ROWS * (CANDIDATES * 8 + 4), ROWS * VOCABULARY * 4)
T = TypeVar("T")
INFO = HelloInfo(config_hash="benchmark", sender_id="benchmark")


def answer(step: StepRequest, node_rank: int, logits: np.ndarray) -> StepReply:
    """Nothing, candidates or all logits, as the step asks; node rank 0 only."""
    if node_rank or not step.want_logits:
        return StepReply(step_id=step.step_id, epoch=1, node_rank=node_rank, compute_s=0.0)
    if step.wants is None:
        return StepReply(step_id=step.step_id, epoch=1, node_rank=0, compute_s=0.0, logits=logits)
    candidates = Candidates(
        logits=np.ascontiguousarray(logits[:, :CANDIDATES]).reshape(-1),
        ids=np.zeros(ROWS * CANDIDATES, np.int32),
        log_totals=np.zeros((ROWS, 2)),
        token_logits=np.zeros(0, np.float32),
    )
    return StepReply(
        step_id=step.step_id, epoch=1, node_rank=0, compute_s=0.0, candidates=candidates
    )


def follow(token: str, node_rank: int, announced: "multiprocessing.Queue[str]") -> None:
    channel = ZmqFollowerChannel(
        INFO,
        GroupKeys.from_token(token),
        node_rank=node_rank,
        host="localhost",
        address="127.0.0.1",
        port=0,
    )
    logits = np.random.default_rng(0).standard_normal((ROWS, VOCABULARY), dtype=np.float32)
    channel.begin(1)
    announced.put((node_rank, channel.endpoint.endpoint))
    while (step := channel.receive(timeout_s=10.0)) is not None:
        channel.reply(answer(step, node_rank, logits))


def echo(size_bytes: int, keys: GroupKeys | None, announced: "multiprocessing.Queue[str]") -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    if keys is not None:
        socket.curve_server = True
        socket.curve_publickey = keys.server_public
        socket.curve_secretkey = keys.server_secret
    socket.bind("tcp://127.0.0.1:0")
    announced.put(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    reply = bytes(size_bytes)
    while True:
        peer, _ = socket.recv_multipart()
        socket.send_multipart([peer, reply], copy=False)


def decode_step(step_id: int, **wanted: object) -> StepRequest:
    return StepRequest(
        step_id=step_id,
        epoch=1,
        phase=Phase.DECODE,
        token_ids=np.arange(ROWS, dtype=np.int32),
        num_computed_tokens=np.arange(ROWS, dtype=np.int32),
        context_lens=np.arange(ROWS, dtype=np.int32),
        block_table=np.zeros((ROWS, BLOCKS), np.int32),
        slot_mapping=np.arange(ROWS, dtype=np.int32),
        **wanted,
    )


def milliseconds(call: Callable[[T], None], inputs: Sequence[T]) -> dict[str, float]:
    """Of each call; the first tenth is warm-up."""
    took = []
    for one in inputs:
        started = time.perf_counter()
        call(one)
        took.append((time.perf_counter() - started) * 1e3)
    took = took[len(took) // 10 :]
    return {f"p{p}": round(float(np.percentile(took, p)), 4) for p in (50, 95, 99)}


def measure_channel(followers: int, rounds: int) -> dict[str, dict[str, float]]:
    token, announced = new_token(), multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=follow, args=(token, rank, announced), daemon=True)
        for rank in range(followers)
    ]
    for process in processes:
        process.start()
    endpoints = [
        StepEndpoint(node_rank=rank, host="localhost", endpoint=endpoint)
        for rank, endpoint in sorted(announced.get() for _ in processes)
    ]
    leader = ZmqLeaderChannel(INFO, GroupKeys.from_token(token))
    leader.connect(1, endpoints, deadline_s=10.0)

    def call(step: StepRequest) -> None:
        leader.broadcast(step)
        leader.gather(step.step_id, deadline_s=10.0)

    took = {}
    for name, wanted, divisor in CASES:
        steps = [decode_step(step_id, **wanted) for step_id in range(rounds // divisor)]
        took[name] = milliseconds(call, steps)
    leader.close()
    for process in processes:
        process.terminate()
        process.join()
    return took


def measure_echo(
    followers: int, rounds: int, *, reply_bytes: int, keys: GroupKeys | None
) -> dict[str, float]:
    announced = multiprocessing.Queue()
    context = zmq.Context()
    processes, sockets = [], []
    for rank in range(followers):
        size = reply_bytes if rank == 0 else SMALL_BYTES
        process = multiprocessing.Process(target=echo, args=(size, keys, announced), daemon=True)
        process.start()
        socket = context.socket(zmq.DEALER)
        if keys is not None:
            socket.curve_serverkey = keys.server_public
            socket.curve_publickey = keys.client_public
            socket.curve_secretkey = keys.client_secret
        socket.connect(announced.get())
        processes.append(process)
        sockets.append(socket)

    def call(request: bytes) -> None:
        for socket in sockets:
            socket.send(request)
        for socket in sockets:
            socket.recv(copy=False)

    took = milliseconds(call, [bytes(ROWS * (BLOCKS + 4) * 4 + 150)] * rounds)
    context.destroy(linger=0)
    for process in processes:
        process.terminate()
        process.join()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--followers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    count, rounds = options.followers, options.rounds
    channel = measure_channel(count, rounds)
    keys = GroupKeys.from_token(new_token())
    plain, curve = (
        {
            name: measure_echo(count, rounds // divisor, reply_bytes=size, keys=peer_keys)
            for (name, _, divisor), size in zip(CASES, REPLY_BYTES, strict=True)
        }
        for peer_keys in (None, keys)
    )
    record = {
        "followers": count,
        "rounds": rounds,
        "cpus": multiprocessing.cpu_count(),
        "python": platform.python_version(),
        "zeromq": zmq.zmq_version(),
        "unit": "ms",
        "channel": channel,
        "raw echo": plain,
        "raw echo with CurveZMQ": curve,
        "p50 over raw echo": ratios(channel, plain),
        "p50 over raw echo with CurveZMQ": ratios(channel, curve),
    }
    print(json.dumps(record, indent=2))


def ratios(
    measured: dict[str, dict[str, float]], peer: dict[str, dict[str, float]]
) -> dict[str, float]:
    return {name: round(measured[name]["p50"] / peer[name]["p50"], 2) for name in peer}


if __name__ == "__main__":
    main()
