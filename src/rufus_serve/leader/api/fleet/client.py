"""`FleetClient`: what vLLM's AsyncLLM holds in place of its own `EngineCoreClient`.

vLLM's own clients end with the first engine that dies. This one has an engine for each group,
starts another when one dies, and has requests go on elsewhere or in the next one; nothing that
AsyncLLM awaits here ever raises because of a dead engine.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import zmq.asyncio
from vllm.outputs import RequestError
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats

from rufus_serve.config import ServeConfig
from rufus_serve.errors import FollowerError, LeaderError, RufusError
from rufus_serve.leader.api.fleet.dispatcher import Dispatcher
from rufus_serve.leader.api.fleet.keeper import EngineKeeper, LostCall
from rufus_serve.leader.api.fleet.link import EngineLink
from rufus_serve.leader.beat import BEAT
from rufus_serve.leader.engine_spec import EngineSpec
from rufus_serve.leader.zygote import Zygotes
from rufus_serve.protocol.messages import GroupNews

_STOP_S = 2.0


class FleetClient(EngineCoreClient):  # type: ignore[misc]
    """Made, and called by AsyncLLM, on the event loop's thread; `shutdown` on any other."""

    def __init__(self, zygotes: Zygotes, config: ServeConfig, folder: str) -> None:
        self.resources = SimpleNamespace(engine_dead=False)
        """AsyncLLM takes itself for dead by it."""
        self.engine_ranks_managed = list(range(config.groups))
        """Values of the label `engine` in /metrics: groups."""
        self.on_new_group: Callable[[int], None] = lambda _: None
        """Called before anything comes of a group that was not there at the start."""
        self._zygotes, self._config, self._folder = zygotes, config, folder
        self._event_loop = asyncio.get_running_loop()
        self._context = zmq.asyncio.Context()
        self._queue: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._dispatcher = Dispatcher(self._queue.put_nowait, self._fail_request)
        self.moves = self._dispatcher.moves
        self._keepers = {group: self._new_keeper(group) for group in range(config.groups)}
        self._stopped = False
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> EngineCoreReadyResponse:
        """Start an engine for each group; what the first that is ready says of itself.

        Raises:
            RufusError: the first that ended its start did not become ready.
        """
        keepers = list(self._keepers.values())
        starts = [asyncio.ensure_future(keeper.start()) for keeper in keepers]
        done, _ = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        ready = done.pop().result().ready
        for keeper, start in zip(keepers, starts, strict=True):
            keeper.follow(start)
        return ready

    def failure(self) -> RufusError | None:
        """Why no request can be served any more; None while it can, or may yet."""
        failures = [keeper.failure() for keeper in self._keepers.values()]
        return failures[0] if all(failures) else None

    def replace_engine(self, group: int, reason: str) -> None:
        """Kill an engine that lives and does nothing; its requests go on elsewhere."""
        if group in self._keepers:
            self._keepers[group].replace(reason)

    @property
    def groups(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(self._keepers)

    def take_news(self, news: GroupNews) -> None:
        """A group came or went: send requests to it, or have them go on in others."""
        if news.state == "gone":
            self._remove(news.group)
            return
        if news.group not in self._keepers:
            self._add(news.group)
        keeper, for_good = self._keepers[news.group], news.state == "failed"
        if for_good:
            keeper.give_up(FollowerError(news.reason))
        elif news.state == "out":
            keeper.begin_anew()
        if news.state == "open":
            self._dispatcher.open(news.group)
            return
        self._dispatcher.close(news.group, lost=news.state != "out", for_good=for_good)

    def _new_keeper(self, group: int) -> EngineKeeper:
        return EngineKeeper(group, self._open_link, self._dispatcher, self._config.recovery)

    def _add(self, group: int) -> None:
        """A group is new: it needs an engine, which waits for its followers."""
        self.on_new_group(group)
        keeper = self._keepers[group] = self._new_keeper(group)
        keeper.follow(keeper.start())

    def _remove(self, group: int) -> None:
        """A group is no more: what it has goes on elsewhere, and its engine ends."""
        keeper = self._keepers.pop(group, None)
        if keeper is None:
            return
        self._dispatcher.close(group, lost=False, for_good=True)
        leaving = self._event_loop.create_task(keeper.leave(deadline_s=_STOP_S))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def num_in(self, group: int) -> int:
        """Requests that a group has."""
        return self._dispatcher.num_in(group)

    async def beat(self, group: int) -> Any:
        """What the group's engine has counted, once its main loop has turned.

        Raises:
            LeaderError: there is no engine, or it died meanwhile.
        """
        keeper = self._keepers.get(group)
        link = keeper.link if keeper is not None else None
        if link is None:
            raise LeaderError(f"group {group} has no engine yet")
        answers = await link.call("collective_rpc", BEAT, None, (), None)
        return answers[0]

    async def _open_link(self, group: int, on_lost: LostCall) -> EngineLink:
        def lost(link: EngineLink, reason: str) -> None:
            # Gauges would stay at what the dead engine said last.
            empty = EngineCoreOutputs(engine_index=link.group, scheduler_stats=SchedulerStats())
            self._queue.put_nowait(empty)
            on_lost(link, reason)

        config = self._config
        link = EngineLink(
            EngineSpec.new(group, self._folder),
            self._context,
            caches=config.prefix_caching and not config.has_kv_lines,
            on_outputs=self._dispatcher.take,
            on_lost=lost,
        )
        await link.start(self._zygotes.fork_engine, deadline_s=start_limit_s(self._config))
        return link

    def _fail_request(self, request_id: str, message: str) -> None:
        output = EngineCoreOutput(
            request_id,
            [],
            finish_reason=FinishReason.ERROR,
            error=RequestError(code="engine_died", message=message),
        )
        self._queue.put_nowait(EngineCoreOutputs(outputs=[output]))

    # ---- what AsyncLLM calls ----

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next outputs of any engine."""
        return await self._queue.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Send it to an engine, or have it wait for one."""
        self._dispatcher.add(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """The front end wants no more of these."""
        self._dispatcher.abort(request_ids)

    async def get_supported_tasks_async(self) -> Any:
        """Those of the engines, which are alike."""
        return tuple((await self._call("get_supported_tasks"))[0])

    async def reset_mm_cache_async(self) -> None:
        """Nothing: only text is served."""

    async def reset_prefix_cache_async(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Forget cached prefixes; whether all engines could."""
        call = self._call("reset_prefix_cache", reset_running_requests, reset_connector)
        return all(await call)

    async def collective_rpc_async(
        self,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """The executor's few worker calls, of every engine."""
        answers = await self._call("collective_rpc", method, timeout, args, kwargs)
        return [each for answer in answers for each in answer]

    def dp_engines_running(self) -> bool:
        """Whether requests are open."""
        return self._dispatcher.num_open > 0

    def shutdown(self, timeout: float | None = None) -> None:
        """End the engines, by force after `timeout`; may be called twice."""
        if self._stopped:
            return
        self._stopped = True
        stopping = self._stop(_STOP_S if timeout is None else timeout)
        with contextlib.suppress(RuntimeError):  # the loop is closed: so are the engines' sockets
            asyncio.run_coroutine_threadsafe(stopping, self._event_loop).result()
        self._zygotes.close()

    async def _stop(self, deadline_s: float) -> None:
        stops = (keeper.stop(deadline_s=deadline_s) for keeper in self._keepers.values())
        await asyncio.gather(*stops, *self._leaving)
        self._context.destroy(linger=0)

    async def _call(self, method: str, *args: Any) -> list[Any]:
        """What the engines answer, but those that die meanwhile.

        Raises:
            LeaderError: none did.
        """
        links = [keeper.link for keeper in self._keepers.values() if keeper.link is not None]
        calls = (link.call(method, *args) for link in links)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(answers):
            raise errors[0] if errors else LeaderError("no engine is ready")
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def start_limit_s(config: ServeConfig) -> float:
    """How long an engine may take to start: it waits for its group to form and to load."""
    limits = config.timeouts
    return limits.join_s + limits.load_s + limits.warm_up_s + limits.leader_start_s


def fleet_factory(
    config: ServeConfig, folder: str, loop: asyncio.AbstractEventLoop
) -> Callable[..., FleetClient]:
    """To be called, on a thread beside `loop`, as vLLM's `make_async_mp_client`.

    It forks, so the caller's process should hold no clients' connections yet.
    """

    def make(vllm_config: Any, executor_class: Any, log_stats: bool, **_: Any) -> FleetClient:
        from vllm.v1.engine.core import EngineCoreProc

        def become_engine(spec: EngineSpec) -> None:
            EngineCoreProc.run_engine_core(
                vllm_config=vllm_config,
                local_client=True,
                handshake_address=spec.address("handshake"),
                executor_class=executor_class,
                log_stats=log_stats,
            )

        zygotes = Zygotes(become_engine)

        async def start() -> FleetClient:
            fleet = FleetClient(zygotes, config, folder)
            apply_ready(vllm_config, await fleet.start())
            return fleet

        try:
            return asyncio.run_coroutine_threadsafe(start(), loop).result()
        except BaseException:
            zygotes.close()
            raise

    return make


@contextlib.contextmanager
def replacing_vllms_client(make_fleet: Callable[..., FleetClient]) -> Iterator[None]:
    """Have an AsyncLLM that is made meanwhile get its client from `make_fleet`."""
    original = EngineCoreClient.make_async_mp_client
    EngineCoreClient.make_async_mp_client = staticmethod(make_fleet)
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original


def apply_ready(vllm_config: Any, ready: EngineCoreReadyResponse) -> None:
    """Let the front end's configuration say what the engine found, as vLLM's clients do.

    Stands in for `MPClient._apply_ready_response`.
    """
    vllm_config.model_config.max_model_len = ready.max_model_len
    cache = vllm_config.cache_config
    cache.num_gpu_blocks, cache.block_size = ready.num_gpu_blocks, ready.block_size
    cache.kv_cache_size_tokens = ready.kv_cache_size_tokens
    cache.kv_cache_max_concurrency = ready.kv_cache_max_concurrency
    cache.effective_attention_block_size = ready.effective_attention_block_size
