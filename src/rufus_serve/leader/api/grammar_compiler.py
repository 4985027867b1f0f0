"""Asks a child process whether a grammar compiles within bounds, before the engine does."""

import asyncio
import contextlib
import logging
import os
import sys
from collections import OrderedDict

import msgspec

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.grammar_child import CompileAnswer, CompileRequest
from rufus_serve.leader.api.grammar_limits import GrammarRefused, check_grammar

_log = logging.getLogger(__name__)
_CACHE_ENTRIES = 1024
_CHILD = "rufus_serve.leader.api.grammar_child"
_LINE_BYTES = 1 << 20


class GrammarCompiler:
    """One child at a time compiles for all requests; verdicts are kept. Event loop only."""

    def __init__(
        self, model: str, *, vocab_size: int, any_whitespace: bool, limits: LimitConfig
    ) -> None:
        self._arguments = (model, str(vocab_size), str(int(any_whitespace)))
        self._limits = limits
        self._verdicts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None

    async def check(self, kind: str, text: str) -> None:
        """Return if the engine may compile `text` of vLLM's `kind`.

        Raises:
            GrammarRefused: it is out of bounds, does not compile, or nothing matches it.
        """
        check_grammar(kind, text, self._limits)
        key = (kind, text)
        async with self._turn:
            if key not in self._verdicts:
                self._verdicts[key] = await self._ask(kind, text)
                if len(self._verdicts) > _CACHE_ENTRIES:
                    self._verdicts.popitem(last=False)
            self._verdicts.move_to_end(key)
        if self._verdicts[key]:
            raise GrammarRefused(
                f"the structured output's {kind} cannot be used: {self._verdicts[key]}"
            )

    async def start(self) -> None:
        """Start the child, which takes seconds to import and load what it needs."""
        async with self._turn:
            await self._running()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()

    async def _ask(self, kind: str, text: str) -> str:
        """The verdict; a child found dead is replaced, unless this grammar seems to kill it."""
        question = CompileRequest(kind=kind, text=text, cpu_s=self._limits.grammar_compile_s)
        try:
            return await self._ask_child(question)
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("the process that compiles grammars died (%s); starting another", error)
        try:
            return await self._ask_child(question)
        except (OSError, msgspec.DecodeError) as error:
            _log.error("a grammar ended the process that compiles it, twice (%s)", error)
            raise GrammarRefused("grammars cannot be compiled just now; try again") from error

    async def _ask_child(self, question: CompileRequest) -> str:
        """The verdict of the child; one that fails in any way is not asked again."""
        child = await self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(msgspec.json.encode(question) + b"\n")
            await child.stdin.drain()
            answer = msgspec.json.decode(await child.stdout.readline(), type=CompileAnswer)
        except BaseException:
            # Also if the request is given up: its answer would be taken for the next one's.
            self.close()
            self._child = None
            raise
        return answer.error

    async def _running(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _CHILD, *self._arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        return self._child
