"""vLLM's OpenAI server behind our gateway, on one socket that answers from the first second.

The gateway serves health while vLLM loads in a worker thread; once its app is built, requests
go through to it. The engine process is forked in between, so nothing here may hold a lock for
long before that.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
from prometheus_client import REGISTRY
from starlette.middleware.cors import CORSMiddleware

from rufus_serve.config import ServeConfig
from rufus_serve.errors import LeaderError, RufusError
from rufus_serve.imports import imports_that_stay
from rufus_serve.leader.api.access import Access
from rufus_serve.leader.api.admission import Admission
from rufus_serve.leader.api.api_link import ApiLink
from rufus_serve.leader.api.audit import Recorder, open_audit_log
from rufus_serve.leader.api.batches.asgi_sender import bearing
from rufus_serve.leader.api.batches.desk import BatchDesk
from rufus_serve.leader.api.batches.routes import BatchRoutes
from rufus_serve.leader.api.engine_args import served_name, vllm_namespace
from rufus_serve.leader.api.health import HealthRoutes
from rufus_serve.leader.api.http_error import App, HttpError, Receive, Scope, Send
from rufus_serve.leader.api.http_server import HttpServer
from rufus_serve.leader.api.key_ring import KeyRing
from rufus_serve.leader.api.metrics_route import MetricsRoute
from rufus_serve.leader.api.overview.board import Board
from rufus_serve.leader.api.overview.routes import OverviewRoutes
from rufus_serve.leader.api.overview.views import Moment
from rufus_serve.leader.api.server_metrics import ServerMetrics
from rufus_serve.leader.api.stream_start import StreamStart
from rufus_serve.leader.api.tracing import tracing_of
from rufus_serve.leader.step_counts import StepCounts
from rufus_serve.protocol.messages import GroupNews, GroupStatus
from rufus_serve.protocol.specs import LeaderSpec

_log = logging.getLogger(__name__)
_LIVENESS_S = 0.5
_WATCH_S = 0.1
_STATUS_S = 1.0
_CLOSE_S = 2


class ApiServer:
    """One run of the API process, from bound socket to exit; event loop thread only."""

    def __init__(
        self, spec: LeaderSpec, config: ServeConfig, *, sock: socket.socket, folder: str
    ) -> None:
        """Engines' sockets go to `folder`."""
        self._config, self._folder = config, folder
        self._sock = sock
        self._stopping = asyncio.Event()
        self._inner: App | None = None
        self._failed: asyncio.Future[RufusError] = asyncio.get_running_loop().create_future()
        self._link = ApiLink(
            spec, on_drain=self._drain, on_failed=self._fail, on_group=self._take_news
        )
        self._fleet: Any = None
        self._news: dict[int, GroupNews] = {}
        """The last of each group; there may be some before there is a fleet."""
        self._keys = KeyRing(config.api_key_file)
        self._admission = Admission(StreamStart(self._forward), config)
        self._metrics = ServerMetrics(lambda: self._admission.num_open)
        REGISTRY.register(self._metrics)
        self._tracing = tracing_of(config.tracing)
        self._board = Board(
            served_name(config),
            num_open=lambda: self._admission.num_open,
            counts=lambda: self._metrics.engines,
        )
        self._audit = open_audit_log(config.http.audit_log)
        self._desk = self._batch_desk()
        self._http = HttpServer(self._gateway(), config)
        self._background: set[asyncio.Task[None]] = set()
        self._beating: set[int] = set()
        """Groups whose engine is asked for signs of life."""

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            RufusError: the engine failed; with the exit code of its cause.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        serving = asyncio.create_task(self._http.serve(sockets=[self._sock]))
        loading = asyncio.create_task(self._serve_model())
        stopping = asyncio.create_task(self._stopped_or_orphaned())
        failing = asyncio.create_task(self._failing())
        following = asyncio.create_task(self._follow_status())
        try:
            ends = (failing, stopping, loading)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                if task.done():
                    task.result()
        finally:
            self._admission.cut_off("the server is stopping")
            self._overview.close()
            self._http.should_exit = True
            await asyncio.wait({serving}, timeout=_CLOSE_S)
            for task in (*ends, serving, following):
                task.cancel()
            await asyncio.gather(*ends, serving, following, return_exceptions=True)
            if self._desk is not None:
                await self._desk.close()
            if self._tracing is not None:
                self._tracing.close()
            self._link.close()

    def _gateway(self) -> App:
        """Our layers, the outermost last."""
        http = self._config.http
        app: App = BatchRoutes(self._admission, self._desk, self._config.batch)
        self._overview = OverviewRoutes(MetricsRoute(app), self._board, page=http.ui)
        app = Access(self._overview, self._keys, docs=http.docs)
        app = HealthRoutes(app, status=self._link.status, obstacle=self._obstacle)
        if self._tracing is not None:
            app = self._tracing.layer(app)
        if http.cors_origins:
            app = _cors(app, http.cors_origins)
        return Recorder(app, self._audit, self._metrics.answered)

    def _batch_desk(self) -> BatchDesk | None:
        batch = self._config.batch

        def find_app(key_id: str) -> App | None:
            key = self._keys.named(key_id)
            if key is None:
                return None
            return Recorder(bearing(self._admission, key), self._audit, self._metrics.answered)

        if batch.folder is None:
            return None
        return BatchDesk(
            batch,
            find_app,
            places=self._config.max_num_seqs,
            max_body_bytes=int(self._config.limits.max_body_mb * 1e6),
        )

    async def _serve_model(self) -> None:
        """Load vLLM, open the gateway, and watch the engines."""
        with imports_that_stay():
            from rufus_serve.leader.api import vllm_server

        args = await vllm_server.in_daemon_thread(vllm_namespace, self._config)
        async with vllm_server.application(args, self._config, self._folder) as (engine, app):
            app.state.server = self._http
            self._admission.max_model_len = engine.model_config.max_model_len
            self._inner = app
            self._fleet = fleet = engine.engine_core
            self._metrics.moves = fleet.moves
            for news in self._news.values():
                fleet.take_news(news)
            self._meet_groups()
            self._background.add(asyncio.create_task(self._keys.keep_fresh()))
            if self._desk is not None:
                # Not before: an engine is forked, which should inherit no database.
                await self._desk.open()
            if self._tracing is not None:
                self._tracing.export_to(self._config.tracing.endpoint)
            self._link.serving()
            _log.info("serving %s at %s", served_name(self._config), self._url())
            await self._watch(engine)

    def _url(self) -> str:
        host, port = self._sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{self._config.http.scheme}://{shown}:{port}"

    async def _watch(self, engine: Any) -> None:
        """Fail once no engine will serve any more."""
        fleet = engine.engine_core
        while not engine.errored and fleet.failure() is None:
            await asyncio.sleep(_WATCH_S)
        failed = LeaderError("vLLM's front end failed; its log above says why")
        self._fail(fleet.failure() or failed)
        await asyncio.Event().wait()

    def _fail(self, error: RufusError) -> None:
        """End for good; the first error counts."""
        if not self._failed.done():
            self._failed.set_result(error)

    async def _failing(self) -> None:
        """Once the server failed: answer all open requests with an error, and raise it.

        Raises:
            RufusError: with the exit code of the cause.
        """
        error = await self._failed
        self._admission.cut_off(f"the server failed: {error}")
        await asyncio.wait({asyncio.create_task(self._admission.idle())}, timeout=_CLOSE_S)
        raise error

    async def _stopped_or_orphaned(self) -> None:
        """Return once told to stop.

        Raises:
            LeaderError: the supervisor, our parent process, is gone.
        """
        parent = os.getppid()
        while os.getppid() == parent:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LIVENESS_S)
                return
        raise LeaderError("the supervisor is gone; start `rufus-serve serve` again")

    def _take_news(self, news: GroupNews) -> None:
        self._news[news.group] = news
        if self._fleet is None:
            return
        num_before = self._fleet.num_in(news.group)
        self._fleet.take_news(news)
        self._meet_groups()
        num_moved = num_before - self._fleet.num_in(news.group)
        if num_moved > 0:
            self._happened(self._board.moved(news.group, num_moved))

    def _meet_groups(self) -> None:
        """Admit as much as the groups that there are take, and listen to those that are new."""
        groups = self._fleet.groups
        self._admission.resize(num_groups=len(groups))
        for group in groups:
            if group not in self._beating:
                self._beating.add(group)
                self._background.add(asyncio.create_task(self._beat(self._fleet, group)))

    def _happened(self, moment: Moment) -> None:
        if self._tracing is not None:
            self._tracing.happened(f"group {moment.group}: {moment.what}")

    async def _beat(self, fleet: Any, group: int) -> None:
        """Ask an engine's main loop for a sign of life, and for what it counted."""
        while group in fleet.groups:
            with contextlib.suppress(LeaderError):  # the engine died; the next one is asked
                counts = await fleet.beat(group)
                self._took_counts(group, msgspec.convert(counts, StepCounts))
            await asyncio.sleep(self._config.timeouts.heartbeat_s)
        self._beating.discard(group)

    def _took_counts(self, group: int, counts: StepCounts) -> None:
        self._metrics.took_counts(group, counts)
        if self._tracing is not None:
            self._tracing.stepped(group, counts.samples)

    async def _follow_status(self) -> None:
        """Show what the supervisor says, and see to what it finds of engines."""
        while True:
            status = await self._link.status()
            if status is not None:
                for moment in self._board.take(status):
                    self._happened(moment)
                self._metrics.took_status(status)
                self._see_to(status.groups)
            await asyncio.sleep(_STATUS_S)

    def _see_to(self, groups: Sequence[GroupStatus]) -> None:
        """Replace engines that the supervisor finds wedged; say of groups that they are idle."""
        for group in groups if self._fleet is not None else ():
            if group.engine_fault:
                self._fleet.replace_engine(group.group, group.engine_fault)
            if group.state == "draining" and not self._fleet.num_in(group.group):
                self._link.idle(group.group)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._inner is None:
            error = HttpError(503, "the model is still loading", retry_after_s=5, reason="loading")
            await error.send(send)
            return
        await self._inner(scope, receive, send)

    def _obstacle(self) -> str:
        if self._admission.draining:
            return "draining"
        return "" if self._inner is not None else "vLLM is starting"

    def _drain(self, grace_s: float) -> None:
        _log.info("draining: %d sequences open, %g s left", self._admission.num_open, grace_s)
        self._admission.drain()
        task = asyncio.create_task(self._acknowledge_when_idle())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _acknowledge_when_idle(self) -> None:
        await self._admission.idle()
        self._link.acknowledge()


def _cors(app: App, origins: Sequence[str]) -> App:
    """Answers browsers' preflights, and names the origin in every answer, errors included."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "x-ratelimit-*"],
        max_age=600,
    )
