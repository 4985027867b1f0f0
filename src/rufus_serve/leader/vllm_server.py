"""Starts vLLM's engine client and builds its FastAPI app, as its own launcher does."""

import asyncio
import logging
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.usage.usage_lib import UsageContext

from rufus_serve.errors import ConfigError, RufusError
from rufus_serve.leader.failure_note import FailureNote

_log = logging.getLogger(__name__)


@asynccontextmanager
async def engine_client(args: Namespace) -> AsyncIterator[Any]:
    """vLLM's AsyncLLM, its engine process forked and its followers ready.

    Raises:
        RufusError: the engine process left a note why it could not start.
        ConfigError: vLLM refuses the configuration.
    """
    engine = await asyncio.to_thread(_start_engine, args)
    try:
        await engine.reset_mm_cache()
        yield engine
    finally:
        await asyncio.to_thread(engine.shutdown, timeout=2)


@asynccontextmanager
async def application(engine: Any, args: Namespace) -> AsyncIterator[Any]:
    """vLLM's FastAPI app over `engine`, with its lifespan entered."""
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    async with app.router.lifespan_context(app):
        yield app


def _start_engine(args: Namespace) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        vllm_config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except (ValueError, OSError) as error:
        raise ConfigError(f"vLLM refuses the configuration: {_first_line(error)}") from error
    try:
        return AsyncLLM.from_vllm_config(
            vllm_config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            disable_log_stats=engine_args.disable_log_stats,
        )
    except RuntimeError as error:
        noted: RufusError | None = FailureNote.from_environment().error()
        raise noted or error from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__
