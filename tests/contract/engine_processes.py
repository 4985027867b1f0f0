"""Processes that speak EngineCore's protocol as vLLM's do, and count instead of computing.

Each token is the number of the one before it in the request, and comes 5 ms after it.
"""

import os
import signal
import sys
import time

import leader_vllm  # noqa: F401 - before the rest of vLLM
import msgspec
import zmq
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
    UtilityOutput,
)
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineHandshakeMetadata
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

from rufus_serve.leader.delivered import take_delivered
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.failure_note import FailureNote

STEP_S = 0.005
READY = EngineCoreReadyResponse(
    max_model_len=64, num_gpu_blocks=8, block_size=16, dp_stats_address=None, dtype="float32",
    vllm_version="0", world_size=1, data_parallel_size=1, tensor_parallel_size=1,
    pipeline_parallel_size=1, decode_context_parallel_size=1, data_parallel_rank=0,
    max_num_seqs=4, max_num_batched_tokens=64, instance_id="x", supports_lora=False, max_loras=0,
)  # fmt: skip


def request(name: str, *, max_tokens: int = 20) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=max_tokens),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


class CountingEngine:
    """One engine process, from the handshake on."""

    def __init__(self, spec: EngineSpec) -> None:
        self._context = zmq.Context()
        handshake = self._socket(zmq.DEALER, spec.address("handshake"))
        handshake.send(msgspec.msgpack.encode({"status": "HELLO"}))
        answer = msgspec.msgpack.decode(handshake.recv(), type=EngineHandshakeMetadata)
        self._input = self._socket(zmq.DEALER, answer.addresses.inputs[0])
        self._output = self._socket(zmq.PUSH, answer.addresses.outputs[0])
        self._running: dict[str, tuple[int, int]] = {}
        self._encoder = MsgpackEncoder()
        self._decode_request = MsgpackDecoder(EngineCoreRequest).decode
        self._decode = MsgpackDecoder().decode

    def _socket(self, kind: int, address: str) -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IDENTITY, (0).to_bytes(2, "little"))
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(address)
        return socket

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        self._input.send(msgspec.msgpack.encode(READY))
        while True:
            while self._input.poll(0 if self._running else 1000):
                kind, *frames = self._input.recv_multipart(copy=False)
                self._take(EngineCoreRequestType(bytes(kind.buffer)), frames)
            self._step()
            time.sleep(STEP_S)

    def _take(self, kind: EngineCoreRequestType, frames: list[zmq.Frame]) -> None:
        if kind is EngineCoreRequestType.ADD:
            added = self._decode_request(frames)
            if added.request_id.startswith("poison"):
                os._exit(1)
            delivered = len(take_delivered(added.sampling_params))
            self._running[added.request_id] = delivered, added.sampling_params.max_tokens
        elif kind is EngineCoreRequestType.ABORT:
            for wire_id in self._decode(frames):
                self._running.pop(wire_id, None)
        else:
            _, call_id, method, args = self._decode(frames)
            self._call(call_id, method, args)

    def _call(self, call_id: int, method: str, args: list[object]) -> None:
        answer = UtilityOutput(call_id)
        if method == "raise_in_the_loop":
            self._output.send(EngineCoreProc.ENGINE_CORE_DEAD)
            time.sleep(60)
        elif method == "hang":
            time.sleep(60)
        elif method == "fail":
            answer.failure_message = "no such method"
        else:
            answer.result = UtilityResult([method, *args])
        self._send(EngineCoreOutputs(utility_output=answer))

    def _step(self) -> None:
        found = []
        for wire_id, (count, limit) in list(self._running.items()):
            done = count + 1 >= limit
            self._running[wire_id] = count + 1, limit
            if done:
                del self._running[wire_id]
            reason = FinishReason.LENGTH if done else None
            found.append(EngineCoreOutput(wire_id, [count], finish_reason=reason))
        if found:
            self._send(EngineCoreOutputs(outputs=found))

    def _end(self) -> None:
        """As vLLM on SIGTERM."""
        aborted = [
            EngineCoreOutput(wire_id, [], finish_reason=FinishReason.ABORT)
            for wire_id in self._running
        ]
        self._send(EngineCoreOutputs(outputs=aborted))
        self._context.destroy(linger=1000)
        sys.exit(0)

    def _send(self, outputs: EngineCoreOutputs) -> None:
        self._output.send_multipart(self._encoder.encode(outputs), copy=False)


def count(spec: EngineSpec) -> None:
    """What a zygote is to run: an engine that counts."""
    CountingEngine(spec).run()


def end_at_once(spec: EngineSpec) -> None:
    sys.exit(3)


def note_and_end(spec: EngineSpec) -> None:
    FailureNote(spec.path("failure")).write(9, "no follower will come")
    sys.exit(9)


def never_ready(spec: EngineSpec) -> None:
    time.sleep(60)
