"""`python -m rufus_serve.leader.api.grammar_child`: compiles grammars where it may be killed.

Loads the tokenizer once, then forks for each grammar, so that one that takes too much time or
memory ends alone. Requests and answers are lines of JSON on standard input and output. It holds
no keys and no sockets.
"""

import contextlib
import json
import math
import os
import re
import resource
import select
import signal
import sys
import time
from typing import Any

import msgspec

from rufus_serve.imports import imports_that_stay
from rufus_serve.parent import die_with_parent

_MEMORY_BYTES = 2 << 30
_WALL_FACTOR = 5
"""Wall-clock time allowed for each second of CPU time: the machine is busy with the model."""
_NICENESS = 10
_MAX_ERROR_BYTES = 4000
_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""Time and source line that xgrammar's messages begin with."""


class CompileRequest(msgspec.Struct):
    """One specification, of vLLM's `kind`."""

    kind: str
    text: str
    cpu_s: float


class CompileAnswer(msgspec.Struct):
    """Why it cannot be used; empty if it can."""

    error: str = ""


def main() -> None:
    """Answer until standard input ends."""
    # Before the imports too: they fall into the last seconds of the server's start.
    os.nice(_NICENESS)
    folder, vocab_size, any_whitespace = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
    compiler = _Compiler(folder, vocab_size, any_whitespace=any_whitespace)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=CompileRequest)
        answer = CompileAnswer(_in_fork(compiler, request))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


class _Compiler:
    """xgrammar's compiler, as vLLM's backend calls it, on one thread."""

    def __init__(self, folder: str, vocab_size: int, *, any_whitespace: bool) -> None:
        with imports_that_stay():
            import xgrammar
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
        vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
        self._any_whitespace = any_whitespace

    def compile(self, kind: str, text: str) -> Any:
        """The compiled grammar; raises RuntimeError."""
        if kind == "json":
            return self._compiler.compile_json_schema(text, any_whitespace=self._any_whitespace)
        if kind == "regex":
            return self._compiler.compile_regex(text)
        if kind == "lark":
            return self._compiler.compile_lark(text)
        if kind == "structural_tag":
            return self._compiler.compile_structural_tag(text)
        if kind == "choice":
            quoted = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
            text = "root ::= " + " | ".join(quoted)
        return self._compiler.compile_grammar(text)


def _in_fork(compiler: _Compiler, request: CompileRequest) -> str:
    """Why the grammar cannot be used; empty if it can."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _compile_and_exit(compiler, request, writing)
    os.close(writing)
    try:
        said = _read_until(reading, time.monotonic() + request.cpu_s * _WALL_FACTOR)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said is None:
        return (
            f"compiling it takes more than {request.cpu_s:g} s of CPU time "
            f"(limits.grammar_compile_s) or {_MEMORY_BYTES >> 30} GiB of memory"
        )
    return said.decode(errors="replace").strip("\0")


def _compile_and_exit(compiler: _Compiler, request: CompileRequest, writing: int) -> None:
    from rufus_serve.leader.api.grammar_emptiness import unproductive_rule

    # Else it would outlive us, and go on compiling, when we are killed.
    die_with_parent(signal.SIGKILL)
    seconds = math.ceil(request.cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        grammar = compiler.compile(request.kind, request.text).grammar
        rule = unproductive_rule(str(grammar))
        said = f"no text matches it: {rule} never ends" if rule else ""
    except MemoryError:
        os._exit(1)
    except Exception as error:  # noqa: BLE001 - the process edge
        said = _PLACE.sub("", str(error)).strip() or type(error).__name__
    # Even silence is a byte: nothing at all means that the process was ended.
    os.write(writing, said.encode()[:_MAX_ERROR_BYTES] + b"\0")
    os._exit(0)


def _read_until(reading: int, deadline: float) -> bytes | None:
    """What a fork said; None if it ended or was late without a word."""
    said = b""
    while not said.endswith(b"\0"):
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(reading, _MAX_ERROR_BYTES) if ready else b""
        if not part:
            return None
        said += part
    return said


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
    # Interpreter shutdown would only print what its libraries leak.
    os._exit(0)
