"""Groups of followers for the runtime suite, in threads or in processes of their own.

A runtime joins the suite by an entry in `RUNTIMES`.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from rufus_serve.config.schema import ServeConfig
from rufus_serve.protocol.messages import RuntimeInfo, StepRequest
from rufus_serve.runtime.base import GroupSpec

SOON_S = 60.0
sys.setswitchinterval(2e-4)
_SPAWN = multiprocessing.get_context("spawn")
_numbers = count()


@dataclass(frozen=True)
class RuntimeKind:
    """How the suite makes and judges one implementation of `Runtime`."""

    module: str
    name: str
    needs_processes: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    follower_counts: tuple[int, ...] = (1, 2, 3, 4)
    models: tuple[str, ...] = ("llama", "llama3", "mistral", "qwen2", "qwen2-windows", "qwen3")
    float32_atol: float = 2e-4


RUNTIMES = {
    "cpu": RuntimeKind(
        module="rufus_serve.runtime.cpu",
        name="CpuRuntime",
        settings={"runtime": "cpu", "cpu": {"threads": 1, "kv_cache_gib": 0.01}},
    ),
}


class Worker:
    """One follower: a runtime and the one thread that calls it."""

    def __init__(self, kind: RuntimeKind, settings: dict[str, Any], node_rank: int) -> None:
        runtime_class = getattr(importlib.import_module(kind.module), kind.name)
        config = ServeConfig(**settings)
        self.runtime = runtime_class(config, node_rank, num_followers_on_host=config.nodes)
        self._thread = ThreadPoolExecutor(1)

    def submit(self, verb: str, *arguments: Any) -> Future:
        if verb == "abort":
            done: Future = Future()
            done.set_result(self.runtime.abort())
            return done
        if verb == "wait_s":
            return self._thread.submit(lambda: self.runtime.last_wait_s)
        if verb in ("load", "warm_up"):
            arguments = (lambda *_: None,)
        if verb in ("prefill", "decode"):
            return self._thread.submit(self._step, verb, *arguments)
        return self._thread.submit(getattr(self.runtime, verb), *arguments)

    def close(self) -> None:
        self.submit("close").result(SOON_S)
        self._thread.shutdown()

    def _step(self, verb: str, step: StepRequest) -> Any:
        """A prompt's scores or candidates if the step asks for them, else all rows; or None."""
        logits = getattr(self.runtime, verb)(step)
        if logits is None:
            return None
        if step.prompt_wants is not None:
            return logits.prompt_scores(step.prompt_wants)
        if step.wants is not None:
            return logits.candidates(step.wants)
        return logits.rows(np.arange(step.num_rows))


def _follow(pipe: Any, kind: RuntimeKind, settings: dict[str, Any], node_rank: int) -> None:
    """A follower's process: verbs come in by number, outcomes go out by number."""
    os.environ["OMP_NUM_THREADS"] = "1"
    worker = Worker(kind, settings, node_rank)
    lock = threading.Lock()

    def answer(number: int, future: Future) -> None:
        error = future.exception()
        with lock, contextlib.suppress(OSError):
            pipe.send((number, error, None if error else future.result()))

    while True:
        try:
            number, verb, arguments = pipe.recv()
        except EOFError:
            return
        future = worker.submit(verb, *arguments)
        future.add_done_callback(lambda done, number=number: answer(number, done))


class RemoteWorker:
    """A `Worker` in a process of its own."""

    def __init__(self, kind: RuntimeKind, settings: dict[str, Any], node_rank: int) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, kind, settings, node_rank)
        self.process = _SPAWN.Process(target=_follow, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self._waiting: dict[int, Future] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def submit(self, verb: str, *arguments: Any) -> Future:
        number, future = next(_numbers), Future()
        self._waiting[number] = future
        self._pipe.send((number, verb, arguments))
        return future

    def close(self) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            self.submit("close").result(SOON_S)
        self.process.kill()
        self.process.join(SOON_S)
        self._reader.join(SOON_S)
        self.process.close()
        self._pipe.close()

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, error, value = self._pipe.recv()
                future = self._waiting.pop(number)
                future.set_exception(error) if error else future.set_result(value)
        for future in self._waiting.values():
            future.set_exception(ConnectionError("the follower's process is gone"))


class Group:
    """All followers of a model."""

    def __init__(
        self, kind: RuntimeKind, settings: dict[str, Any], *, in_processes: bool = False
    ) -> None:
        own_processes = in_processes or kind.needs_processes
        make = RemoteWorker if own_processes else Worker
        merged = _merge(kind.settings, settings)
        self.num_nodes = merged.get("nodes", 1)
        self.workers = [make(kind, merged, rank) for rank in range(self.num_nodes)]
        self.infos: list[RuntimeInfo] = []
        self.rendezvous = ""

    def start(self, *, rendezvous: str = "") -> "Group":
        """Load, then join epoch 1."""
        self.infos = self.all("load")
        self.join(1, rendezvous=rendezvous)
        return self

    def join(self, epoch: int, *, rendezvous: str = "") -> None:
        """Have everyone join `epoch` and warm up."""
        self.all_of([("join", spec) for spec in self.specs(epoch, rendezvous=rendezvous)])
        self.all("warm_up")

    def specs(self, epoch: int, *, rendezvous: str = "") -> list[GroupSpec]:
        """What each follower is told of an epoch."""
        self.rendezvous = rendezvous or f"rufus-test-{os.getpid()}-{next(_numbers)}"
        return [
            GroupSpec(
                epoch=epoch, node_rank=rank, num_nodes=self.num_nodes,
                rendezvous=self.rendezvous, same_host=True, num_blocks=self.num_blocks,
            )
            for rank in range(self.num_nodes)
        ]  # fmt: skip

    @property
    def info(self) -> RuntimeInfo:
        return self.infos[0]

    @property
    def num_blocks(self) -> int:
        return min(info.num_blocks for info in self.infos)

    def all(self, verb: str, *arguments: Any) -> list[Any]:
        """Call `verb` on every follower at once; results by node rank."""
        return self.all_of([(verb, *arguments)] * self.num_nodes)

    def all_of(self, calls: list[tuple]) -> list[Any]:
        """One call for each follower."""
        futures = [worker.submit(*call) for worker, call in zip(self.workers, calls, strict=True)]
        wait(futures, SOON_S, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()
        return [future.result(0) for future in futures]

    def step(self, step: StepRequest) -> Any:
        """Node rank 0's logits; the others must have none."""
        first, *others = self.all(step.phase.value, step)
        assert others == [None] * len(others)
        return first

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def _merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) else value
    return merged
