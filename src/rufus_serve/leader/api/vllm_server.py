"""Starts vLLM's engine client and builds its FastAPI app, as its own launcher does."""

import asyncio
import contextlib
import logging
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.usage.usage_lib import UsageContext

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError, ModelError, RufusError
from rufus_serve.leader.api import vllm_compat
from rufus_serve.leader.api.engine_guard import guard
from rufus_serve.leader.api.engine_metrics import add_engine
from rufus_serve.leader.api.fleet.client import fleet_factory, replacing_vllms_client
from rufus_serve.leader.api.grammar_compiler import GrammarCompiler
from rufus_serve.leader.api.routes import listed_paths
from rufus_serve.leader.beat import CHOOSES_TOKENS, HAS_PROMPT_LOGPROBS


@asynccontextmanager
async def engine_client(args: Namespace, config: ServeConfig, folder: str) -> AsyncIterator[Any]:
    """vLLM's AsyncLLM over our `FleetClient`, its engine and followers ready."""
    make_fleet = fleet_factory(config, folder, asyncio.get_running_loop())
    with replacing_vllms_client(make_fleet):
        engine = await in_daemon_thread(_start_engine, args)
    engine.engine_core.on_new_group = partial(add_engine, engine.logger_manager)
    try:
        await engine.reset_mm_cache()
        yield engine
    finally:
        if engine.output_handler is not None:
            engine.output_handler.cancel()
        await in_daemon_thread(engine.shutdown, 2)


@asynccontextmanager
async def application(
    args: Namespace, config: ServeConfig, folder: str
) -> AsyncIterator[tuple[Any, Any]]:
    """vLLM's engine client, guarded, and its FastAPI app over it with its lifespan entered.

    Raises:
        RufusError: why the engine process could not start.
        ConfigError: vLLM refuses the configuration.
    """
    vllm_compat.allow_several_greedy_answers()
    vllm_compat.skip_sagemaker_handlers()
    vllm_compat.tell_that_nothing_is_stored()
    making = engine_client(args, config, folder)
    async with making as engine, grammar_compiler(engine, config) as grammars:
        vllm_compat.allow_all_parameters_with_drafts(engine)
        guard(
            engine,
            grammars,
            prioritized=args.scheduling_policy == "priority",
            has_prompt_logprobs=all(await engine.collective_rpc(HAS_PROMPT_LOGPROBS)),
            chooses_tokens=any(await engine.collective_rpc(CHOOSES_TOKENS)),
        )
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        if config.http.docs:
            app.openapi()["paths"] = listed_paths(app.openapi()["paths"])
        await init_app_state(engine, app.state, args, tasks)
        async with app.router.lifespan_context(app):
            yield engine, app


@asynccontextmanager
async def grammar_compiler(engine: Any, config: ServeConfig) -> AsyncIterator[GrammarCompiler]:
    """Checks grammars for `engine`; its child process is started without waiting for it."""
    model, options = engine.model_config, engine.vllm_config.structured_outputs_config
    grammars = GrammarCompiler(
        model.tokenizer,
        vocab_size=model.get_vocab_size(),
        any_whitespace=not options.disable_any_whitespace,
        limits=config.limits,
    )
    starting = asyncio.create_task(grammars.start())
    try:
        yield grammars
    finally:
        starting.cancel()
        grammars.close()


async def in_daemon_thread(call: Callable[..., Any], *args: Any) -> Any:
    """What `call` returns; unlike a pooled thread, it does not hold up the process's end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call(*args)
        except BaseException as error:  # noqa: BLE001 - handed over to the event loop
            failure = error
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=call.__name__, daemon=True).start()
    return await future


def _start_engine(args: Namespace) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    # They warn of our custom scheduler and of compilation being off, as intended.
    for name in ("vllm.config.scheduler", "vllm.config.vllm"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    try:
        vllm_config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except RufusError:
        raise
    except Exception as error:
        raise ConfigError(f"vLLM refuses the configuration: {_first_line(error)}") from error
    try:
        return AsyncLLM.from_vllm_config(
            vllm_config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            disable_log_stats=engine_args.disable_log_stats,
        )
    except RufusError:
        raise
    except Exception as error:  # what reads a broken tokenizer fails in every way
        raise ModelError(f"vLLM cannot use the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = isinstance(error, ValueError | OSError)
    return " ".join([*([] if plain else [f"{type(error).__name__}:"]), *lines[:3]])
