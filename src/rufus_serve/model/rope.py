"""The rotary settings of a config.json, written by transformers 4 or 5."""

from collections.abc import Iterator, Mapping
from typing import Any

from rufus_serve.errors import ModelError

_NOT_STRETCHED = (
    "default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling",
)  # fmt: skip
"""Kinds whose max_position_embeddings counts the stretched positions already."""


def rope_settings(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one section of settings; transformers 5 prefers the older key where there are both.

    Raises:
        ModelError: it is no object.
    """
    settings = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        raise ModelError(f"config.json: rope settings must be an object, got {settings!r}")
    return settings


def rope_kind(settings: Mapping[str, Any]) -> str:
    """The way of stretching, `default` for none."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def per_layer_type(settings: Mapping[str, Any]) -> list[str]:
    """Layer types with settings of their own; none if one setting is for all layers."""
    return [name for name, value in settings.items() if isinstance(value, Mapping)]


def longest_context(raw: Mapping[str, Any], max_position_embeddings: int) -> int:
    """Positions that the model can tell apart, by vLLM's rules (0.33, config/model.py).

    Raises:
        ModelError: a factor is no number above 0.
    """
    settings = rope_settings(raw)
    if any(rope_kind(one) == "longrope" for one in _every(settings)):
        original = raw.get("original_max_position_embeddings")
        return int(original or max_position_embeddings)
    factor: Any = 1
    for one in _every(settings):
        if rope_kind(one) not in _NOT_STRETCHED:
            factor = one.get("factor", factor)
    if factor is None:
        factor = 1
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise ModelError(f"config.json: rope factor must be a positive number, got {factor!r}")
    return int(max_position_embeddings * factor)


def _every(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    names = per_layer_type(settings)
    yield from (settings[name] for name in names) if names else (settings,)
