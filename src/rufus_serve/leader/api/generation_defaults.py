"""The sampling defaults that a model brings along, where no request could be made with them."""

import json
import logging
from pathlib import Path
from typing import Any

from rufus_serve.leader.api.http_error import HttpError
from rufus_serve.leader.api.request_checks import check_numbers

_log = logging.getLogger(__name__)
_NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


def greedy_defaults() -> dict[str, Any]:
    """Defaults of requests where followers choose tokens: no other could be served."""
    return _NEUTRAL | {"temperature": 0.0}


def replaced_defaults(model: Path) -> dict[str, Any]:
    """Defaults in `model`'s generation_config.json that a request is refused for, made neutral.

    vLLM applies them to each request that does not set the field, and then refuses the request.
    """
    try:
        given = json.loads((model / "generation_config.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(given, dict):
        return {}
    return {name: _NEUTRAL[name] for name in _NEUTRAL if not _is_usable(name, given.get(name))}


def _is_usable(name: str, value: object) -> bool:
    try:
        check_numbers({name: value})
    except HttpError as error:
        _log.warning("generation_config.json: %s; the default is not used", error.message)
        return False
    return value != 0 or name not in ("top_p", "repetition_penalty")
