"""`EngineLink`: the conversation with one engine process, in EngineCore's own protocol.

    HELLO  ─▶ handshake   ◀─ addresses
    READY  ─▶ input       ◀─ ADD, ABORT, UTILITY
    outputs and results of UTILITY, or ENGINE_CORE_DEAD  ─▶ output

Every incarnation of an engine has sockets of its own: on shared ones an old engine's late frames
could not be told from a new one's. vLLM's `core_client.py` and `core.py` are the reference.
"""

import asyncio
import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from vllm.utils.network_utils import make_zmq_socket
from vllm.v1.engine import (
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    EngineCoreRequestType,
)
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import EngineHandshakeMetadata, EngineZmqAddresses
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from rufus_serve.errors import LeaderError, RufusError
from rufus_serve.leader.api.fleet.flight import Capacity
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.failure_note import FailureNote

_log = logging.getLogger(__name__)
_IDENTITY = (0).to_bytes(2, "little")
"""Each engine believes to be the only one."""
_KINDS = (("handshake", zmq.ROUTER), ("input", zmq.ROUTER), ("output", zmq.PULL))


class EngineStartFailed(LeaderError):
    """An engine ended, or hung, before it was ready; another one may do better."""


class EngineLink:
    """One incarnation of one group's engine; event loop thread only.

    `caches`: it keeps beginnings of prompts for later requests.
    `on_lost` is called once, with the reason, when an engine that was ready is dead;
    `on_outputs` never after that.
    """

    def __init__(
        self,
        spec: EngineSpec,
        context: zmq.asyncio.Context,
        *,
        caches: bool,
        on_outputs: Callable[["EngineLink", EngineCoreOutputs], None],
        on_lost: Callable[["EngineLink", str], None],
    ) -> None:
        self.spec = spec
        self.pid = 0
        self.gone = False
        """Nothing is sent any more, and nothing comes."""
        self.accepts = False
        """New requests may be sent."""
        self.ready: EngineCoreReadyResponse | None = None
        self._caches = caches
        self._on_outputs, self._on_lost = on_outputs, on_lost
        self._sockets = {
            kind: make_zmq_socket(context, spec.address(kind), type_, bind=True, linger=0)
            for kind, type_ in _KINDS
        }
        self._encoder, self._decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreOutputs)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._pidfd = -1
        self._lost_by = ""

    @property
    def group(self) -> int:
        """The group whose followers it steps."""
        return self.spec.group

    @property
    def capacity(self) -> Capacity:
        """By its own word; it must be ready."""
        ready = self.ready
        assert ready is not None
        num_tokens = ready.num_gpu_blocks * ready.block_size
        return Capacity(sequences=ready.max_num_seqs, tokens=num_tokens, caches=self._caches)

    def failure(self) -> RufusError | None:
        """Why it says that another engine would do no better; None if it does not."""
        return FailureNote(self.spec.path("failure")).error()

    async def start(self, fork: Callable[[EngineSpec], int], *, deadline_s: float) -> None:
        """Have the process forked; returns once it takes requests.

        Raises:
            EngineStartFailed: it died, or was not ready in time and was killed.
            LeaderError: no engine can be forked any more, or it noted why none can serve.
        """
        try:
            self.pid = await asyncio.to_thread(fork, self.spec)
            self._watch_process()
            self._spawn(self._shake_hands())
            becoming = self._spawn(self._become_ready())
            await asyncio.wait({becoming}, timeout=deadline_s)
        except BaseException:
            self._lose("it is not wanted any more")
            raise
        if self.ready is None or self.gone:
            self._lose(f"not ready after {deadline_s:g} s")
            message = f"the engine of group {self.group} did not start: {self._lost_by}"
            raise self.failure() or EngineStartFailed(message)
        self.accepts = True
        self._spawn(self._read())

    def add(self, request: EngineCoreRequest) -> None:
        """Send it a request; never waits, as the queue has no bound."""
        self._send(EngineCoreRequestType.ADD, request)

    def abort(self, wire_ids: Sequence[str]) -> None:
        """Have it forget requests."""
        self._send(EngineCoreRequestType.ABORT, list(wire_ids))

    def _send(self, kind: EngineCoreRequestType, payload: Any) -> None:
        frames = (_IDENTITY, kind.value, *self._encoder.encode(payload))
        self._sockets["input"].send_multipart(frames, copy=False)

    async def call(self, method: str, *args: Any) -> Any:
        """The result of one of EngineCore's methods.

        Raises:
            LeaderError: the method failed, or the engine died meanwhile.
        """
        if self.gone:
            raise LeaderError(f"the engine of group {self.group} is gone")
        call_id = uuid.uuid4().int >> 65
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        self._send(EngineCoreRequestType.UTILITY, (0, call_id, method, args))
        return await future

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
        with contextlib.suppress(OSError):  # it is gone, or was never there
            signal.pidfd_send_signal(self._pidfd, number)

    def give_up(self, reason: str) -> None:
        """Kill the process, and take it for lost; nothing happens if it is."""
        self._lose(reason)

    async def stop(self, *, deadline_s: float) -> None:
        """End the process, by force after `deadline_s`; `on_lost` is not called."""
        self._on_lost = lambda *_: None
        self.signal(signal.SIGTERM)
        for _ in range(max(1, int(deadline_s / 0.02))):
            if self.gone:
                return
            await asyncio.sleep(0.02)
        self._lose("it was stopped")

    def _watch_process(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._process_ended()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)

    def _process_ended(self) -> None:
        word = self.spec.last_word()
        self._lose(f"process {self.pid} ended{word and f': {word}'}")

    async def _shake_hands(self) -> None:
        inputs, outputs = [self.spec.address("input")], [self.spec.address("output")]
        addresses = EngineZmqAddresses(inputs=inputs, outputs=outputs)
        answer = EngineHandshakeMetadata(addresses=addresses, parallel_config={})
        while True:
            identity, raw = await self._sockets["handshake"].recv_multipart()
            if msgspec.msgpack.decode(raw)["status"] == "HELLO":
                frames = (identity, msgspec.msgpack.encode(answer))
                await self._sockets["handshake"].send_multipart(frames)

    async def _become_ready(self) -> None:
        _, payload = await self._sockets["input"].recv_multipart()
        self.ready = msgspec.msgpack.decode(payload, type=EngineCoreReadyResponse)

    async def _read(self) -> None:
        while True:
            frames = await self._sockets["output"].recv_multipart(copy=False)
            if len(frames) == 1 and frames[0].buffer == EngineCoreProc.ENGINE_CORE_DEAD:
                self._lose("vLLM's engine failed; its log above says why")
                return
            outputs = self._decoder.decode(frames)
            if outputs.utility_output is not None:
                self._settle(outputs.utility_output)
            else:
                self._on_outputs(self, outputs)

    def _settle(self, output: Any) -> None:
        future = self._calls.pop(output.call_id, None)
        if future is None or future.done():
            return
        if output.failure_message is not None:
            future.set_exception(LeaderError(output.failure_message))
        else:
            future.set_result(output.result.result)

    def _lose(self, reason: str) -> None:
        if self.gone:
            return
        was_started, self.accepts = self.accepts, False
        self.gone, self._lost_by = True, reason
        self._close_process()
        self._close_sockets()
        if was_started:
            self._on_lost(self, reason)

    def _close_process(self) -> None:
        """Make sure that it is dead: it may only have said so."""
        if self._pidfd >= 0:
            self.signal(signal.SIGKILL)
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _close_sockets(self) -> None:
        for task in self._tasks:
            task.cancel()
        for kind, socket in self._sockets.items():
            socket.close(linger=0)
            self.spec.path(kind).unlink(missing_ok=True)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(LeaderError(f"the engine of group {self.group} is gone"))
        self._calls.clear()

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("reading from the engine of group %d failed", self.group, exc_info=error)
            self._lose(f"its messages cannot be read: {error}")
