"""vLLM's executor over followers: waits for the group, tells vLLM its shape, runs steps."""

import contextlib
import logging
import queue
import signal
from concurrent.futures import Future
from typing import Any, NoReturn

import torch
from vllm.v1.executor.abstract import Executor

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.faults import with_leader_faults
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.zeromq import ZmqLeaderChannel
from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError, FollowerError, LeaderError, RufusError, StartupTimeout
from rufus_serve.leader.beat import BEAT, CHOOSES_TOKENS, HAS_PROMPT_LOGPROBS
from rufus_serve.leader.engine import vllm_compat
from rufus_serve.leader.engine.batch_state import BatchState
from rufus_serve.leader.engine.drafts import Drafter
from rufus_serve.leader.engine.group_link import GroupEvents, GroupLink
from rufus_serve.leader.engine.group_shape import GroupShape
from rufus_serve.leader.engine.group_steps import GroupSteps
from rufus_serve.leader.engine.sampling import TokenSampler
from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_builder import StepBuilder
from rufus_serve.leader.engine.step_counter import StepCounter
from rufus_serve.leader.engine.step_deadline import StepDeadline
from rufus_serve.leader.engine.step_loop import StepLoop
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.failure_note import FailureNote
from rufus_serve.leader.spec import config_of, read_spec
from rufus_serve.protocol.messages import EpochLost, GroupReady, RuntimeInfo

_log = logging.getLogger(__name__)


class FollowerExecutor(Executor):  # type: ignore[misc]
    """Lives in the engine process; vLLM calls it from EngineCore's main thread.

    A lost group is not a failure here: its steps end in `StepLost`, and the scheduler waits
    for the next epoch. Once no further one can come, the supervisor has the API process end it.
    """

    supports_pp = False

    def _init_executor(self) -> None:
        signal.set_wakeup_fd(-1)
        torch.seed()  # Engines are forked of one process: unseeded draws would be the same.
        vllm_compat.quiet_shutdown()
        self._own = EngineSpec.from_environment()
        self._loop: StepLoop | None = None
        self._formed: queue.Queue[GroupReady] = queue.Queue()
        """Groups not connected to yet; before the first, that is until steps can be run."""
        try:
            self._start()
        except RufusError as error:
            self._give_up(error)

    def _start(self) -> None:
        spec = read_spec()
        self._config = config = config_of(spec)
        self._engine = Engine(max_prefills_per_step=_max_prefills(config))
        vllm_compat.attach_engine(self.vllm_config, self._engine)
        self._progress = progress = StepCounter(self._engine)
        self._link = GroupLink(
            spec,
            engine=self._own,
            events=GroupEvents(self._on_ready, self._on_lost, self._engine.trace.start),
            progress=progress.report,
            interval_s=config.timeouts.heartbeat_s,
        )
        ready = self._first_group()
        self._shape = GroupShape.of(ready.info, config)
        self._shape.apply_to(self.vllm_config)
        self._engine.prefill_tokens_per_step = self._shape.prefill_tokens_per_step(
            self.vllm_config.model_config.max_model_len
        )
        progress.tally.know(ready.info)
        keys = GroupKeys.from_token(spec.token)
        channel = ZmqLeaderChannel(_identity(config, self._own.engine_id), keys)
        self._channel = with_leader_faults(channel)
        self._steps = GroupSteps(
            self._channel,
            self._engine.gate,
            builder=StepBuilder.for_runtime(ready.info),
            progress=progress,
            deadline=StepDeadline(config.timeouts.step_floor_s),
            tell_lost=self._link.tell_lost,
        )
        self._engine.tokens_per_row = self._shape.tokens_per_row
        state = BatchState(self.vllm_config, info=ready.info, drafter=_drafter(config, ready.info))
        sampler = TokenSampler(self.vllm_config, state, vocab_size=ready.info.vocab_size)
        self._loop = StepLoop(self._steps, self._engine, state, sampler)
        self._formed.put(ready)
        self._connect_newest()

    def _first_group(self) -> GroupReady:
        """Wait for the first group, as long as all of its start-up phases may take.

        Raises:
            StartupTimeout: none in time.
        """
        limits = self._config.timeouts
        budget_s = limits.join_s + limits.load_s + limits.warm_up_s
        try:
            return self._formed.get(timeout=budget_s)
        except queue.Empty:
            raise StartupTimeout(
                f"no group of followers within {budget_s:g} s "
                "(timeouts.join_s + timeouts.load_s + timeouts.warm_up_s); see the followers' logs"
            ) from None

    def _connect_newest(self) -> None:
        """Connect to what formed; main or link thread, and by the gate's order only onwards."""
        with contextlib.suppress(queue.Empty):
            while self._loop is not None:
                self._connect(self._formed.get_nowait(), self._loop)

    def _connect(self, ready: GroupReady, loop: StepLoop) -> None:
        mismatch = self._shape.mismatch(ready.info)
        if mismatch:
            self._link.fail(FollowerError(mismatch))
            return
        if not self._engine.gate.announce(ready.epoch):
            return
        joining = loop.submit(self._steps.connect, ready)
        joining.add_done_callback(self._check)

    def _check(self, future: "Future[Any]") -> None:
        """Fail for good if the step thread met something that no new group can cure."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            _log.error("connecting to the followers failed", exc_info=error)
            self._link.fail(LeaderError(f"connecting to the followers failed: {error}"))

    def _on_ready(self, ready: GroupReady) -> None:
        _log.info("group of epoch %d is ready, %d followers", ready.epoch, len(ready.endpoints))
        self._formed.put(ready)
        self._connect_newest()

    def _on_lost(self, lost: EpochLost) -> None:
        _log.warning("epoch %d is over: %s", lost.epoch, lost.reason)
        if self._engine.gate.shut(lost.epoch):
            self._channel.abandon(lost.epoch, lost.reason)

    def _give_up(self, error: RufusError) -> NoReturn:
        """End the engine process before it served anything; the API process tells why."""
        FailureNote(self._own.path("failure")).write(error.exit_code, str(error))
        self.shutdown()
        raise SystemExit(error.exit_code)

    # ---- what vLLM asks at start ----

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        """One worker's layers, with all KV heads: the real sharding is the followers' own."""
        return [vllm_compat.kv_cache_specs(self._shape.info)]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """Any; the leader holds no cache."""
        return [["LBNHC"]]

    def set_kv_cache_layout(self, *_: Any) -> None:
        """Ignored; the leader holds no cache."""

    def determine_available_memory(self) -> list[int]:
        """Bytes from which vLLM derives the followers' number of blocks."""
        (specs,) = self.get_kv_cache_specs()
        return [vllm_compat.kv_cache_bytes(specs, self._shape.num_blocks)]

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        """Check what vLLM made of `determine_available_memory`."""
        planned = kv_cache_configs[0].num_blocks
        if planned > self._shape.num_blocks:
            self._give_up(
                ConfigError(
                    f"vLLM planned {planned} KV blocks, but followers hold "
                    f"{self._shape.num_blocks}; remove block settings from vllm_args"
                )
            )

    def compile_or_warm_up_model(self) -> None:
        """Nothing: followers were warm before they were announced."""

    def collective_rpc(self, method: Any, *_: Any, **options: Any) -> Any:
        """The few worker calls that mean something without a worker."""
        answers: dict[str, Any] = {
            "get_supported_tasks": ("generate",),
            "reset_mm_cache": None,
            HAS_PROMPT_LOGPROBS: self._shape.info.prompt_logprobs,
            CHOOSES_TOKENS: self._shape.info.chosen_tokens > 0,
        }
        if method == BEAT:
            self._progress.turned()
            answers[BEAT] = self._progress.tally.report()
        if method not in answers:
            raise NotImplementedError(f"followers do not offer {method}")
        if not options.get("non_block"):
            return [answers[method]]
        future: Future[Any] = Future()
        future.set_result([answers[method]])
        return future

    # ---- steps ----

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Run a step; None, or a future of it, means `sample_tokens` is to follow."""
        future = self._running_loop().execute(scheduler_output)
        return future if non_block else future.result()

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """Sample the step executed last."""
        future = self._running_loop().sample(grammar_output)
        return future if non_block else future.result()

    def take_draft_token_ids(self) -> None:
        """None: the step thread makes drafts when it runs a step, and grammars mask none."""

    def _running_loop(self) -> StepLoop:
        if self._loop is None:
            raise AssertionError("steps come after start-up")
        return self._loop

    # ---- life cycle ----

    def check_health(self) -> None:
        """Always healthy while the process lives; the supervisor judges the group."""

    def shutdown(self) -> None:
        """Hang up on supervisor and followers; may be called twice."""
        if self._loop is not None:
            self._loop.close()
            self._channel.close()
            self._loop = None
        link = getattr(self, "_link", None)
        if link is not None:
            link.close()

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """Steps are queued, so the scheduler may run ahead of them."""
        return True


def _identity(config: ServeConfig, engine_id: str) -> HelloInfo:
    return HelloInfo(config_hash=config.group_hash(), sender_id=engine_id)


def _drafter(config: ServeConfig, info: RuntimeInfo) -> Drafter | None:
    speculation = config.speculation
    if speculation.method != "ngram":
        return None
    return Drafter(
        shortest=speculation.prompt_lookup_min,
        longest=speculation.prompt_lookup_max,
        are_free=info.drafts_are_free,
    )


def _max_prefills(config: ServeConfig) -> int:
    return config.neuron.max_prefills_per_decode if config.is_neuron_shaped else 0
