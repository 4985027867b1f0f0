"""Refuses request bodies that followers cannot serve, before any work is done.

Pure functions of path and parsed body. What vLLM itself refuses with a clear 4xx is left to it.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.http_error import HttpError

_RUNS_NO_TOOLS = "tools are run by the client, not by this server"
_IN_STRUCTURED_OUTPUTS = "structured_outputs has it"
UNSUPPORTED_FIELDS = {
    "prompt_embeds": "followers take token ids only",
    "kv_transfer_params": "the KV cache stays in the followers",
    "ec_transfer_params": "the KV cache stays in the followers",
    "mm_processor_kwargs": "only text is served",
    "return_routed_experts": "followers do not report expert routing",
    "prompt_logprob_token_ids": "prompt_logprobs tells of a prompt's own tokens and the best ones",
    "logits_processors": "they are chosen at start, by vllm_args.logits_processors",
    "audio": "only text is served",
    "web_search_options": "this server searches nothing",
    "mcp_servers": _RUNS_NO_TOOLS,
    "functions": "it is older than tools; use those",
    "guided_json": _IN_STRUCTURED_OUTPUTS,
    "guided_regex": _IN_STRUCTURED_OUTPUTS,
    "guided_choice": _IN_STRUCTURED_OUTPUTS,
    "guided_grammar": _IN_STRUCTURED_OUTPUTS,
}
"""Fields that are not honoured, and why."""
_COMPLETIONS = frozenset({"/v1/completions", "/v1/chat/completions", "/invocations"})
_OF_COMPLETIONS = ("echo", "prompt_logprobs")
NEEDS_STORE = ("previous_response_id", "background", "conversation")
_TOOLS = frozenset({"function", "custom", "namespace"})
"""Kinds of tools that clients run themselves."""
SILENTLY_WRONG = {
    "best_of": (1, "ask for n answers and choose"),
    "modalities": (["text"], "only text is served"),
}
"""Fields that vLLM ignores: the one value that asks for what it does anyway, and why no other."""
_MEDIA = frozenset(
    {
        "image", "image_url", "input_image", "image_pil", "image_embeds", "audio_url", "audio",
        "input_audio", "audio_embeds", "video", "video_url", "input_video", "file", "input_file",
        "prompt_embeds",
    }
)  # fmt: skip
_RESPONSE_FORMATS = frozenset({"text", "json_object", "json_schema", "structural_tag"})
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 10.0),
    "top_k": (-1, 2**31),
}
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_AT_LEAST = {**dict.fromkeys(_MAX_TOKENS, 1), "n": 1, "min_tokens": 0}
_NUMBERS = (
    "prompt", "tokens", "items", "stop_token_ids", "allowed_token_ids", "label_token_ids",
    "logit_bias", "seed", "priority", "prompt_logprobs", "top_logprobs", "thinking_token_budget",
    "truncate_prompt_tokens", "length_penalty",
)  # fmt: skip
"""Fields of numbers, or of lists and objects of them; vLLM takes true for 1."""


def check_body(path: str, body: Any, limits: LimitConfig) -> None:
    """Raise HttpError 400 if `body` cannot be served on `path`."""
    if not isinstance(body, dict):
        raise HttpError(400, "the request body must be a JSON object")
    for name, why in UNSUPPORTED_FIELDS.items():
        if body.get(name) not in (None, False, []):
            raise HttpError(400, f"{name} is not supported: {why}", param=name)
    if path == "/v1/responses":
        _check_storage(body)
        _check_tools(body)
    for name, (harmless, why) in SILENTLY_WRONG.items():
        value = body.get(name)
        if value not in (None, harmless):
            raise HttpError(400, f"{name}={value!r} is not supported: {why}", param=name)
    check_numbers(body, may_be_no_tokens=path == "/v1/completions" and bool(body.get("echo")))
    _check_booleans(path, body)
    if (body.get("n") or 1) > limits.max_n:
        raise HttpError(
            400, f"n must be at most {limits.max_n} (limits.max_n), got {body['n']}", param="n"
        )
    _check_stop(body, limits)
    _check_structure(body)
    _check_messages(path, body)
    for name in _OF_COMPLETIONS:
        value = body.get(name)
        if path not in _COMPLETIONS and value is not None and value is not False:
            raise HttpError(400, f"{name} is not supported on {path}", param=name)


def weight_of(path: str, body: Mapping[str, Any]) -> int:
    """Sequences that a checked request body asks for."""
    n = body.get("n")
    return max(1, _num_prompts(path, body)) * (n if isinstance(n, int) and n > 0 else 1)


def cap_max_tokens(body: dict[str, Any], max_model_len: int) -> bool:
    """Lower what asks for more tokens than a context has; whether anything did.

    vLLM itself caps what the prompt leaves no room for.
    """
    names = [name for name in _MAX_TOKENS if (body.get(name) or 0) > max_model_len]
    for name in names:
        body[name] = max_model_len
    return bool(names)


def _num_prompts(path: str, body: Mapping[str, Any]) -> int:
    messages, prompt, items = body.get("messages"), body.get("prompt"), body.get("items")
    if path.endswith("/batch"):
        return len(messages) if isinstance(messages, list) else 1
    if path == "/generative_scoring":
        return len(items) if isinstance(items, list) else 1
    return len(prompt) if isinstance(prompt, list) and not _is_token_list(prompt) else 1


def _is_token_list(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _check_storage(body: Mapping[str, Any]) -> None:
    for name in NEEDS_STORE:
        if body.get(name) not in (None, False):
            raise HttpError(
                400,
                f"{name} is not supported: this server stores no responses (every answer says "
                "store: false); send the whole conversation as input",
                param=name,
            )


def _check_tools(body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in _TOOLS:
            raise HttpError(
                400, f"tools of type {kind} are not supported: {_RUNS_NO_TOOLS}", "tools"
            )


def check_numbers(body: Mapping[str, Any], *, may_be_no_tokens: bool = False) -> None:
    """Raise HttpError 400 for a number that is out of range.

    `may_be_no_tokens`: an answer may be the prompt alone.
    """
    for name, (low, high) in _RANGES.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HttpError(400, f"{name} must be a number, got {value!r}", param=name)
        if not math.isfinite(value) or not low <= value <= high:
            raise HttpError(400, f"{name} must be from {low:g} to {high:g}, got {value}", name)
    for name, least in (_AT_LEAST | ({"max_tokens": 0} if may_be_no_tokens else {})).items():
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise HttpError(400, f"{name} must be a whole number, got {value!r}", param=name)
        if value is not None and value < least:
            raise HttpError(400, f"{name} must be at least {least}, got {value}", param=name)


def _check_booleans(path: str, body: Mapping[str, Any]) -> None:
    for name in (*_NUMBERS, *(("logprobs",) if path == "/v1/completions" else ())):
        if _has_boolean(body.get(name)):
            raise HttpError(400, f"{name} must be of numbers, but has a boolean", param=name)


def _has_boolean(value: object) -> bool:
    """Whether `value` is a boolean, or has one in its list, or in the lists of that."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return isinstance(value, bool)
    inner = chain.from_iterable(each for each in value if isinstance(each, list))
    return bool in set(map(type, value)) or bool in set(map(type, inner))


def _check_stop(body: Mapping[str, Any], limits: LimitConfig) -> None:
    for name in ("stop", "stop_sequences", "stop_token_ids", "bad_words"):
        value = body.get(name)
        if isinstance(value, list) and len(value) > limits.max_stop_strings:
            raise HttpError(
                400,
                f"{name} has {len(value)} entries; at most {limits.max_stop_strings} are allowed "
                "(limits.max_stop_strings)",
                param=name,
            )


def _check_structure(body: Mapping[str, Any]) -> None:
    for name in ("structured_outputs", "stream_options"):
        value = body.get(name)
        if value is not None and not isinstance(value, dict):
            raise HttpError(400, f"{name} must be an object, got {value!r}", param=name)
    wanted = body.get("response_format")
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in _RESPONSE_FORMATS:
        known = ", ".join(sorted(_RESPONSE_FORMATS))
        raise HttpError(
            400, f"response_format.type must be one of {known}; got {kind!r}", "response_format"
        )


def _check_messages(path: str, body: Mapping[str, Any]) -> None:
    if path.startswith(("/v1/chat/", "/v1/messages")):
        messages = body.get("messages")
        if isinstance(messages, list) and not messages:
            raise HttpError(400, "messages must not be empty", param="messages")
    for name in ("messages", "input"):
        for kind in _part_types(body.get(name)):
            if kind in _MEDIA:
                raise HttpError(
                    400, f"content of type {kind} is not supported; only text is served", name
                )


def _part_types(conversation: object) -> Iterator[str]:
    """The types of all parts of a conversation, a list of them, or a tool's result."""
    waiting = [conversation]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str):
                yield kind
            elif kind is None:
                yield from _MEDIA & part.keys()
            waiting += [part.get("content"), part.get("output")]
