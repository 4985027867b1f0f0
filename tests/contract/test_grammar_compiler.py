"""Grammars are compiled in a process that may be killed, and soon serves again."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.e2e.models import VOCAB
from tests.e2e.server import DEMO_MODEL

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.grammar_compiler import GrammarCompiler
from rufus_serve.leader.api.grammar_limits import GrammarRefused

pytest.importorskip("xgrammar")
pytestmark = [
    pytest.mark.skipif(not DEMO_MODEL.is_dir(), reason="no demo model: run `make demo-model`"),
    pytest.mark.timeout(300),
]
BOMB = json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(2000)}})


def run(scenario: Callable[[GrammarCompiler], Awaitable[None]], **limits: Any) -> None:
    async def guarded() -> None:
        compiler = GrammarCompiler(
            str(DEMO_MODEL), vocab_size=VOCAB, any_whitespace=True, limits=LimitConfig(**limits)
        )
        try:
            await compiler.start()
            await scenario(compiler)
        finally:
            compiler.close()
            assert compiler._child is not None
            await compiler._child.wait()
            # Its pipes are closed in the loop's own time.
            await asyncio.sleep(0.1)

    asyncio.run(guarded())


def test_a_bomb_is_cut_off_and_the_next_grammar_compiles() -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        with pytest.raises(GrammarRefused, match="grammar_compile_s"):
            await compiler.check("json", BOMB)
        await compiler.check("json", json.dumps({"type": "object"}))
        began = time.monotonic()
        with pytest.raises(GrammarRefused, match="grammar_compile_s"):
            await compiler.check("json", BOMB)
        assert time.monotonic() - began < 0.5

    run(scenario, max_schema_properties=5000, grammar_compile_s=1)


def test_a_request_that_is_given_up_leaves_no_answer_for_the_next() -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        await compiler.check("regex", "a+")
        given_up = asyncio.ensure_future(compiler.check("json", BOMB))
        await asyncio.sleep(0.2)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        with pytest.raises(GrammarRefused, match="not closed"):
            await compiler.check("regex", "((((")
        await compiler.check("choice", json.dumps(["a", 'b"\n']))

    run(scenario, max_schema_properties=5000)


def test_a_child_that_died_is_replaced() -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        await compiler.check("regex", "a+")
        assert compiler._child is not None
        compiler._child.kill()
        await compiler._child.wait()
        await compiler.check("regex", "b+")

    run(scenario)


def test_no_request_is_refused_for_a_child_that_died_before_it() -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        assert compiler._child is not None
        # Its end is not known yet when the next request comes.
        compiler._child.kill()
        await compiler.check("regex", "a+")

    run(scenario)


def test_a_grammar_whose_child_dies_each_time_is_refused() -> None:
    async def scenario(compiler: GrammarCompiler) -> None:
        started = compiler._running

        async def start_and_kill() -> asyncio.subprocess.Process:
            child = await started()
            child.kill()
            return child

        compiler._running = start_and_kill  # type: ignore[method-assign]
        with pytest.raises(GrammarRefused, match="just now"):
            await compiler.check("regex", "a+")
        compiler._running = started  # type: ignore[method-assign]
        await compiler.check("regex", "a+")

    run(scenario)
