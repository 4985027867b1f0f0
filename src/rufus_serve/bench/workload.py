"""What is asked: prompts by kind, the same ones for the same seed.

A prompt is token ids where its length must be exact, else a conversation.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from rufus_serve.errors import ConfigError

_FIRST_ID = 300
"""Below lie bytes and special tokens in most vocabularies."""
_WORDS = ("river", "stone", "window", "garden", "letter", "winter", "market", "bridge")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request."""

    max_tokens: int
    prompt: tuple[int, ...] | str | None = None
    """For /v1/completions."""
    messages: tuple[dict[str, Any], ...] = ()
    """For /v1/chat/completions; what the model said before is filled in as it comes."""
    exact: bool = False
    """Whether the answer has `max_tokens` whatever the model would end with: vLLM's ignore_eos."""
    session: int = -1
    """Turns of one session are asked one after another."""
    at_s: float | None = None
    """When a trace wants it to begin."""

    @property
    def is_chat(self) -> bool:
        """Which of the two routes it takes."""
        return self.prompt is None


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of made-up requests."""

    num_requests: int
    input_tokens: int
    output_tokens: int
    shared_tokens: int = 0
    """Beginning that all prompts of a kind have in common."""
    kinds: int = 1
    """Different shared beginnings."""
    turns: int = 1
    vocab_size: int = 30000
    exact: bool = True
    seed: int = 0


def made_up(shape: Shape) -> list[Ask]:
    """Random token ids of exact length, beginnings shared as `shape` says.

    Raises:
        ConfigError: the sizes contradict each other.
    """
    if shape.shared_tokens >= shape.input_tokens:
        raise ConfigError(
            f"shared tokens {shape.shared_tokens} must be fewer than input tokens "
            f"{shape.input_tokens}"
        )
    if shape.vocab_size <= _FIRST_ID:
        raise ConfigError(f"vocab size {shape.vocab_size} must be above {_FIRST_ID}")
    draw = random.Random(shape.seed)  # noqa: S311 - load, not secrets

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(_FIRST_ID, shape.vocab_size) for _ in range(length))

    beginnings = [ids(shape.shared_tokens) for _ in range(shape.kinds)]
    return [
        Ask(
            prompt=beginnings[index % shape.kinds] + ids(shape.input_tokens - shape.shared_tokens),
            max_tokens=shape.output_tokens,
            exact=shape.exact,
        )
        for index in range(shape.num_requests)
    ]


def conversations(shape: Shape) -> list[Ask]:
    """Sessions of `turns` questions each; every question adds about `input_tokens` words."""
    draw = random.Random(shape.seed)  # noqa: S311 - load, not secrets

    def question() -> dict[str, str]:
        return {"role": "user", "content": " ".join(draw.choices(_WORDS, k=shape.input_tokens))}

    return [
        Ask(
            messages=(question(),),
            max_tokens=shape.output_tokens,
            session=index // shape.turns,
        )
        for index in range(shape.num_requests)
    ]


def from_file(path: Path, *, output_tokens: int) -> list[Ask]:
    """One request a line: `prompt` (text or ids) or `messages`; `max_tokens` and `at` may be set.

    Raises:
        ConfigError: the file cannot be read, or a line is not such an object.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    found = list(_asked(path, lines, output_tokens))
    if not found:
        raise ConfigError(f"{path} holds no request; write one JSON object a line")
    return found


def _asked(path: Path, lines: list[str], output_tokens: int) -> Iterator[Ask]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            at = fields.get("at")
            yield msgspec.convert(
                {
                    "prompt": fields.get("prompt"),
                    "messages": fields.get("messages", ()),
                    "max_tokens": fields.get("max_tokens", output_tokens),
                    "at_s": None if at is None else float(at),
                },
                Ask,
            )
            if ("prompt" in fields) == ("messages" in fields):
                raise ConfigError(f"{path}:{number}: give either prompt or messages")
        except (ValueError, TypeError, AttributeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path}:{number}: not a request: {error}") from error
