"""How a request enters an engine with tokens that another engine delivered already.

They travel in `SamplingParams.extra_args`, which vLLM carries and does not read. Clients can
write there too (`vllm_xargs`), so what they bring under this name is thrown away.
"""

import copy
from collections.abc import Sequence
from typing import Any

_NAME = "rufus_delivered"


def with_delivered(params: Any, token_ids: Sequence[int]) -> Any:
    """A copy of the sampling `params` that carries `token_ids`; the original stays as it is."""
    carrying = copy.copy(params)
    carrying.extra_args = {**(params.extra_args or {}), _NAME: list(token_ids)}
    return carrying


def take_delivered(params: Any) -> list[int]:
    """The tokens that `params` carry; they are taken out."""
    if params is None or not params.extra_args or _NAME not in params.extra_args:
        return []
    others = {name: value for name, value in params.extra_args.items() if name != _NAME}
    token_ids: list[int] = params.extra_args[_NAME]
    params.extra_args = others or None
    return token_ids
